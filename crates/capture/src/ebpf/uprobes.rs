//! Placing the two programs in a library: by uprobe-multi links, or on kernels without by perf events.
//!
//! A perf event is one place and direction, and letting it go waits for all of the kernel's readers: 85 to 110 ms each, one
//! after another, measured on Linux 6.18. So many are not let go here, but by a child process that has them from us, and
//! that nobody waits for. Until they are gone, which takes 23 s for the CUDA runtime's, their programs run on,
//! into maps that nobody reads. When we are killed the kernel lets them go in our place, and our end takes as long.
//!
//! It does not know which places are worth a probe.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use libbpf_rs::{Link, Object, ProgramMut, UprobeMultiOpts, UprobeOpts};

use super::kernel::ProbeKind;
use super::library::{self, Library, Point};
use crate::sys;

/// Every process that maps the file.
const EVERY_PROCESS: i32 = -1;

/// Probes that are in place, until they are dropped.
#[derive(Default)]
pub(super) struct Uprobes {
    multi: Vec<Link>,
    events: Vec<Link>,
}

impl Uprobes {
    /// Adds probes at `points` of `library`: all or none.
    pub(super) fn place(
        &mut self,
        kind: ProbeKind,
        object: &mut Object,
        library: &Library,
        points: &[Point],
    ) -> io::Result<()> {
        let mut new = Uprobes::default();
        // The return first: an entry without its return would stay open.
        for (name, retprobe) in [("call_return", true), ("call_entry", false)] {
            let program = object
                .progs_mut()
                .find(|p| p.name() == name)
                .ok_or(io::ErrorKind::NotFound)?;
            new.place_program(kind, &program, retprobe, library, points)?;
        }
        self.multi.append(&mut new.multi);
        self.events.append(&mut new.events);
        Ok(())
    }

    fn place_program(
        &mut self,
        kind: ProbeKind,
        program: &ProgramMut<'_>,
        retprobe: bool,
        library: &Library,
        points: &[Point],
    ) -> io::Result<()> {
        let path = library.kernel_path();
        match kind {
            ProbeKind::UprobeMulti => {
                let options = UprobeMultiOpts {
                    offsets: points.iter().map(|p| p.offset as usize).collect(),
                    cookies: points.iter().map(|p| library::cookie(p.op)).collect(),
                    retprobe,
                    ..UprobeMultiOpts::default()
                };
                let link = program
                    .attach_uprobe_multi_with_opts(EVERY_PROCESS, &path, "", options)
                    .map_err(io::Error::other)?;
                self.multi.push(link);
            }
            ProbeKind::PerfEvents => {
                for point in points {
                    let options = UprobeOpts {
                        cookie: library::cookie(point.op),
                        retprobe,
                        ..UprobeOpts::default()
                    };
                    let at = point.offset as usize;
                    let link = program
                        .attach_uprobe_with_opts(EVERY_PROCESS, &path, at, options)
                        .map_err(io::Error::other)?;
                    self.events.push(link);
                }
            }
        }
        Ok(())
    }

    /// Lets all go.
    pub(super) fn clear(&mut self) {
        let events = std::mem::take(&mut self.events);
        if !events.is_empty() {
            // The link's descriptor holds the event's.
            let held: Vec<i32> = events.iter().map(|l| l.as_fd().as_raw_fd()).collect();
            match sys::child_that_holds(held) {
                Ok(child) => {
                    drop(events);
                    // Now they are its alone, and it may end.
                    drop(child);
                }
                Err(error) => {
                    tracing::warn!(%error, probes = events.len(), "no child to remove probes: this takes long");
                    drop(events);
                }
            }
        }
        // Closing one link waits for every CPU: together they wait once.
        let multi = std::mem::take(&mut self.multi);
        std::thread::scope(|scope| {
            for link in multi {
                scope.spawn(move || drop(link));
            }
        });
    }
}

impl Drop for Uprobes {
    fn drop(&mut self) {
        self.clear();
    }
}
