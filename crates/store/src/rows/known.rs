//! Rows of what is known of processes, and of what they say: names, paths, stacks, annotations.

use warptrace_model::{
    Annotation, BootNanos, FilePath, Incarnation, Labels, Pid, ProcessInfo, Sender, Thread,
    ThreadName, Window,
};

use super::{
    AnnotationRow, FileRow, Frame, FrameRow, LabelRow, ProcessRow, Stack, StackRow, ThreadRow,
};

impl From<&Annotation> for AnnotationRow {
    fn from(a: &Annotation) -> AnnotationRow {
        AnnotationRow {
            boot_ns: a.at.0,
            pid: a.scope.map(|s| s.pid.0),
            start_ticks: a.scope.map(|s| s.start_ticks),
            span_start_ns: a.span.map(|s| s.start.0),
            span_dur_ns: a.span.map(|s| s.nanos()),
            labels: a
                .labels
                .iter()
                .map(|(key, value)| LabelRow {
                    key: key.to_owned(),
                    value: value.to_owned(),
                })
                .collect(),
            sender_uid: a.sender.map(|s| s.uid),
            sender_gid: a.sender.map(|s| s.gid),
            sender_pid: a.sender.map(|s| s.pid),
        }
    }
}

impl AnnotationRow {
    pub(crate) fn annotation(self) -> Option<Annotation> {
        let mut labels = Labels::default();
        for l in &self.labels {
            labels.insert(&l.key, &l.value).ok()?;
        }
        let window = |(start, dur)| Window::at(BootNanos(start), dur);
        Some(Annotation {
            at: BootNanos(self.boot_ns),
            span: self.span_start_ns.zip(self.span_dur_ns).map(window),
            scope: self.pid.map(|pid| Incarnation {
                pid: Pid(pid),
                start_ticks: self.start_ticks.unwrap_or(0),
            }),
            labels,
            sender: self.sender_uid.map(|uid| Sender {
                uid,
                gid: self.sender_gid.unwrap_or(0),
                pid: self.sender_pid.unwrap_or(0),
            }),
        })
    }
}

impl From<&ProcessInfo> for ProcessRow {
    fn from(p: &ProcessInfo) -> ProcessRow {
        ProcessRow {
            pid: p.incarnation.pid.0,
            start_ticks: p.incarnation.start_ticks,
            boot_ns: p.start.0,
            parent_pid: p.parent.0,
            name: p.name.clone(),
            command: p.command.clone(),
            from_start: p.from_start,
            in_job: p.in_job,
            uid: p.uid,
            cgroup: p.cgroup.clone(),
            container_id: p.container_id.clone(),
            rank: p.rank,
            local_rank: p.local_rank,
            world_size: p.world_size,
        }
    }
}

impl ProcessRow {
    pub(crate) fn info(self) -> ProcessInfo {
        ProcessInfo {
            incarnation: Incarnation {
                pid: Pid(self.pid),
                start_ticks: self.start_ticks,
            },
            parent: Pid(self.parent_pid),
            name: self.name,
            command: self.command,
            start: BootNanos(self.boot_ns),
            from_start: self.from_start,
            in_job: self.in_job,
            uid: self.uid,
            cgroup: self.cgroup,
            container_id: self.container_id,
            rank: self.rank,
            local_rank: self.local_rank,
            world_size: self.world_size,
        }
    }
}

impl ThreadRow {
    pub(crate) fn new(t: &ThreadName, learned: BootNanos) -> ThreadRow {
        ThreadRow {
            boot_ns: learned.0,
            pid: t.thread.pid.0,
            tid: t.thread.tid.0,
            name: t.name.to_string(),
        }
    }

    pub(crate) fn name(self) -> ThreadName {
        ThreadName {
            thread: Thread::new(self.pid, self.tid),
            name: self.name.into(),
        }
    }
}

impl FileRow {
    pub(crate) fn new(f: &FilePath, learned: BootNanos) -> FileRow {
        FileRow {
            boot_ns: learned.0,
            pid: f.pid.0,
            fd: f.fd,
            path: f.path.clone(),
        }
    }

    pub(crate) fn path(self) -> FilePath {
        FilePath {
            pid: Pid(self.pid),
            fd: self.fd,
            path: self.path,
        }
    }
}

impl From<&Stack> for StackRow {
    fn from(s: &Stack) -> StackRow {
        StackRow {
            stack_id: s.id,
            frames: s
                .frames
                .iter()
                .map(|f| FrameRow {
                    ip: f.ip,
                    module: f.module.clone(),
                    module_offset: f.module_offset,
                    function: f.function.clone(),
                    file: f.file.clone(),
                    line: f.line,
                })
                .collect(),
        }
    }
}

impl StackRow {
    pub(crate) fn stack(self) -> Stack {
        Stack {
            id: self.stack_id,
            frames: self
                .frames
                .into_iter()
                .map(|f| Frame {
                    ip: f.ip,
                    module: f.module,
                    module_offset: f.module_offset,
                    function: f.function,
                    file: f.file,
                    line: f.line,
                })
                .collect(),
        }
    }
}
