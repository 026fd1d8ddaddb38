//! Streams and events, and what is queued on them.

use super::*;

impl Driver {
    pub(super) fn new_stream(
        &mut self,
        context: Handle,
        kind: StreamKind,
        flags: u32,
        priority: i32,
    ) -> Handle {
        let handle = self.handle();
        let stream = Stream {
            context,
            kind,
            flags,
            priority,
            tail: 0,
            capture: None,
            capture_origin: false,
        };
        self.streams.insert(handle, stream);
        handle
    }

    /// A new stream. `flags`: bit 0 `NON_BLOCKING`. Lower priorities are more urgent; they are kept, and change nothing.
    ///
    /// # Errors
    /// `InvalidContext`; `InvalidValue` for other flags.
    pub fn create_stream(&mut self, context: Handle, flags: u32, priority: i32) -> Result<Handle> {
        self.context(context)?;
        let kind = match flags {
            0 => StreamKind::Blocking,
            STREAM_NON_BLOCKING => StreamKind::NonBlocking,
            _ => return Err(Status::InvalidValue),
        };
        Ok(self.new_stream(context, kind, flags, priority.clamp(-5, 0)))
    }

    /// Ends a stream. Its work goes on.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn destroy_stream(&mut self, handle: Handle) -> Result<()> {
        match self.streams.get(&handle) {
            Some(stream) if stream.kind != StreamKind::Legacy => {
                self.streams.remove(&handle);
                Ok(())
            }
            _ => Err(Status::InvalidHandle),
        }
    }

    pub(super) fn resolve(&mut self, context: Handle, stream: StreamRef) -> Result<Handle> {
        match stream {
            StreamRef::Created(handle) if self.streams.contains_key(&handle) => Ok(handle),
            StreamRef::Created(_) => Err(Status::InvalidHandle),
            StreamRef::Legacy => Ok(self
                .contexts
                .get(&context)
                .ok_or(Status::InvalidContext)?
                .legacy),
            StreamRef::PerThread(thread) => {
                let owner = self.contexts.get(&context).ok_or(Status::InvalidContext)?;
                if let Some(handle) = owner.per_thread.get(&thread) {
                    return Ok(*handle);
                }
                let handle = self.new_stream(context, StreamKind::Blocking, 0, 0);
                let owner = self
                    .contexts
                    .get_mut(&context)
                    .ok_or(Status::InvalidContext)?;
                if owner.per_thread.len() >= PER_THREAD_STREAMS {
                    // Threads come and go; an idle stream is as good as a new one.
                    let (streams, now) = (&mut self.streams, boot_ns());
                    owner.per_thread.retain(|_, old| {
                        let busy = streams
                            .get(old)
                            .is_some_and(|s| s.tail > now || s.capture.is_some());
                        if !busy {
                            streams.remove(old);
                        }
                        busy
                    });
                }
                owner.per_thread.insert(thread, handle);
                Ok(handle)
            }
        }
    }

    /// Queues work. Inside a capture it becomes a node instead, and the span is empty.
    ///
    /// The wait is for room in the launch queue: a context may have `launch_depth` launches outstanding.
    ///
    /// # Errors
    /// `InvalidContext`, `InvalidHandle`.
    pub fn enqueue(
        &mut self,
        context: Handle,
        stream: StreamRef,
        work: Work,
    ) -> Result<(Span, Wait)> {
        let handle = self.resolve(context, stream)?;
        if let Some(graph) = self.streams[&handle].capture {
            let graph = self.graphs.get_mut(&graph).ok_or(Status::Unknown)?;
            graph.nodes.push(work);
            return Ok((Span { start: 0, end: 0 }, Wait::default()));
        }
        let context = self.streams[&handle].context;
        let span = self.run(handle, work);
        let mut until = 0;
        if work.launch {
            let depth = self.config.launch_depth;
            let owner = self
                .contexts
                .get_mut(&context)
                .ok_or(Status::InvalidContext)?;
            owner.launches.push_back(span.end);
            if owner.launches.len() > depth {
                until = owner.launches.pop_front().unwrap_or(0);
            }
        }
        let wait = Wait {
            until,
            ..self.wait(context, until)
        };
        Ok((span, wait))
    }

    fn run(&mut self, handle: Handle, work: Work) -> Span {
        let ready = self.ready_at(handle);
        let device = self
            .streams
            .get(&handle)
            .and_then(|s| self.contexts.get(&s.context))
            .map_or(0, |c| c.device);
        let span = self
            .machine
            .submit(device, work.engine, ready, work.duration);
        self.set_tail(handle, span.end);
        span
    }

    /// When the next work of a stream may start, for all that its order says.
    pub(super) fn ready_at(&self, handle: Handle) -> u64 {
        let stream = &self.streams[&handle];
        let context = &self.contexts[&stream.context];
        match stream.kind {
            StreamKind::Legacy => stream.tail.max(context.blocking_tail),
            StreamKind::Blocking => stream.tail.max(self.streams[&context.legacy].tail),
            StreamKind::NonBlocking => stream.tail,
        }
    }

    pub(super) fn set_tail(&mut self, handle: Handle, end: u64) {
        let Some(stream) = self.streams.get_mut(&handle) else {
            return;
        };
        stream.tail = stream.tail.max(end);
        let Some(context) = self.contexts.get_mut(&stream.context) else {
            return;
        };
        context.tail = context.tail.max(end);
        if stream.kind != StreamKind::NonBlocking {
            context.blocking_tail = context.blocking_tail.max(end);
        }
    }

    /// Waits for all that was queued on a stream (for the legacy stream: on all blocking ones).
    ///
    /// # Errors
    /// `InvalidContext`, `InvalidHandle`; `CaptureUnsupported` while it captures.
    pub fn synchronize_stream(&mut self, context: Handle, stream: StreamRef) -> Result<Wait> {
        let until = self.stream_end(context, stream)?;
        self.trim_pool(until);
        Ok(self.wait(context, until))
    }

    /// Whether all that was queued on a stream is done.
    ///
    /// # Errors
    /// `NotReady` when it is not; else as [`Self::synchronize_stream`].
    pub fn query_stream(&mut self, context: Handle, stream: StreamRef) -> Result<()> {
        done_by(self.stream_end(context, stream)?)
    }

    fn stream_end(&mut self, context: Handle, stream: StreamRef) -> Result<u64> {
        let handle = self.resolve(context, stream)?;
        let known = &self.streams[&handle];
        if known.capture.is_some() {
            return Err(Status::CaptureUnsupported);
        }
        // An empty stream is done, whatever the legacy stream does: only work waits for it.
        Ok(match known.kind {
            StreamKind::Legacy => self.ready_at(handle),
            _ => known.tail,
        })
    }

    /// Flags, priority, context, and a number that no other stream of the process has.
    ///
    /// # Errors
    /// `InvalidContext`, `InvalidHandle`.
    pub fn stream_info(
        &mut self,
        context: Handle,
        stream: StreamRef,
    ) -> Result<(u32, i32, Handle, u64)> {
        let handle = self.resolve(context, stream)?;
        let known = &self.streams[&handle];
        Ok((
            known.flags,
            known.priority,
            known.context,
            (handle - FIRST_HANDLE) / 0x40,
        ))
    }

    /// A new event. `flags`: bit 0 blocking wait, bit 1 no timing.
    ///
    /// # Errors
    /// `InvalidContext`; `InvalidValue` for unknown flags.
    pub fn create_event(&mut self, context: Handle, flags: u32) -> Result<Handle> {
        self.context(context)?;
        if flags & !7 != 0 {
            return Err(Status::InvalidValue);
        }
        let handle = self.handle();
        let event = Event {
            context,
            flags,
            recorded_at: None,
            capture: None,
        };
        self.events.insert(handle, event);
        Ok(handle)
    }

    /// Ends an event.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn destroy_event(&mut self, event: Handle) -> Result<()> {
        self.events
            .remove(&event)
            .map(drop)
            .ok_or(Status::InvalidHandle)
    }

    /// Marks a stream's present end in an event.
    ///
    /// # Errors
    /// `InvalidHandle`, `InvalidContext`.
    pub fn record_event(
        &mut self,
        context: Handle,
        event: Handle,
        stream: StreamRef,
    ) -> Result<()> {
        let handle = self.resolve(context, stream)?;
        let at = self.ready_at(handle).max(boot_ns());
        let capture = self.streams[&handle].capture;
        let event = self.events.get_mut(&event).ok_or(Status::InvalidHandle)?;
        event.capture = capture;
        if capture.is_none() {
            event.recorded_at = Some(at);
        }
        Ok(())
    }

    /// Lets what a stream gets from now on wait for an event. In a capture, the stream joins the event's.
    ///
    /// # Errors
    /// `InvalidHandle`, `InvalidContext`.
    pub fn stream_wait_event(
        &mut self,
        context: Handle,
        stream: StreamRef,
        event: Handle,
    ) -> Result<()> {
        let handle = self.resolve(context, stream)?;
        let event = self.events.get(&event).ok_or(Status::InvalidHandle)?;
        let (at, capture) = (event.recorded_at, event.capture);
        if let Some(graph) = capture {
            if let Some(stream) = self.streams.get_mut(&handle) {
                stream.capture = Some(graph);
            }
        } else if let Some(at) = at {
            self.set_tail(handle, at);
        }
        Ok(())
    }

    /// Whether an event's work is done; one that was never recorded is.
    ///
    /// # Errors
    /// `NotReady`; `InvalidHandle`.
    pub fn query_event(&self, event: Handle) -> Result<()> {
        let event = self.events.get(&event).ok_or(Status::InvalidHandle)?;
        done_by(event.recorded_at.unwrap_or(0))
    }

    /// Waits for an event.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn synchronize_event(&mut self, event: Handle) -> Result<Wait> {
        let known = self.events.get(&event).ok_or(Status::InvalidHandle)?;
        let (context, blocking) = (known.context, known.flags & EVENT_BLOCKING != 0);
        let until = known.recorded_at.unwrap_or(0);
        self.trim_pool(until);
        let mut wait = self.wait(context, until);
        if blocking && self.config.sync.is_none() {
            wait.mode = Some(SyncMode::Block);
        }
        Ok(wait)
    }

    /// Milliseconds from one event to another.
    ///
    /// # Errors
    /// `InvalidHandle` when one is unknown, never recorded, or has no timing; `NotReady` when one is not done.
    pub fn elapsed_ms(&self, from: Handle, to: Handle) -> Result<f32> {
        let at = |handle| {
            let event: &Event = self.events.get(&handle).ok_or(Status::InvalidHandle)?;
            if event.flags & EVENT_NO_TIMING != 0 {
                return Err(Status::InvalidHandle);
            }
            event.recorded_at.ok_or(Status::InvalidHandle)
        };
        let (from, to) = (at(from)?, at(to)?);
        done_by(from.max(to))?;
        Ok((to as f64 - from as f64) as f32 / 1e6)
    }
}
