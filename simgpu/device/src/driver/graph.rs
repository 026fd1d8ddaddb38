//! Capture, graphs, and their launches.

use super::*;

impl Driver {
    /// An empty graph.
    pub fn create_graph(&mut self) -> Handle {
        let handle = self.handle();
        self.graphs.insert(handle, Graph { nodes: Vec::new() });
        handle
    }

    /// From now on the stream records what it is given.
    ///
    /// # Errors
    /// `CaptureUnsupported` for the legacy stream or one that captures; `InvalidHandle`, `InvalidContext`.
    pub fn begin_capture(&mut self, context: Handle, stream: StreamRef) -> Result<()> {
        let handle = self.resolve(context, stream)?;
        let known = &self.streams[&handle];
        if known.kind == StreamKind::Legacy || known.capture.is_some() {
            return Err(Status::CaptureUnsupported);
        }
        let graph = self.create_graph();
        if let Some(stream) = self.streams.get_mut(&handle) {
            stream.capture = Some(graph);
            stream.capture_origin = true;
        }
        Ok(())
    }

    /// Ends a capture, for all streams that joined it; the graph.
    ///
    /// # Errors
    /// `CaptureUnmatched` when none began on this stream; `InvalidHandle`, `InvalidContext`.
    pub fn end_capture(&mut self, context: Handle, stream: StreamRef) -> Result<Handle> {
        let handle = self.resolve(context, stream)?;
        let known = &self.streams[&handle];
        let (Some(graph), true) = (known.capture, known.capture_origin) else {
            return Err(Status::CaptureUnmatched);
        };
        for stream in self.streams.values_mut() {
            if stream.capture == Some(graph) {
                (stream.capture, stream.capture_origin) = (None, false);
            }
        }
        for event in self.events.values_mut() {
            if event.capture == Some(graph) {
                event.capture = None;
            }
        }
        Ok(graph)
    }

    /// The graph that a stream records into.
    ///
    /// # Errors
    /// `InvalidHandle`, `InvalidContext`.
    pub fn capturing(&mut self, context: Handle, stream: StreamRef) -> Result<Option<Handle>> {
        let handle = self.resolve(context, stream)?;
        Ok(self.streams[&handle].capture)
    }

    /// Adds a kernel of `blocks` blocks to a graph.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn add_kernel_node(
        &mut self,
        graph: Handle,
        function: Handle,
        blocks: u64,
    ) -> Result<usize> {
        self.function_info(function)?;
        let duration = self.config.kernel_nanos + blocks * self.config.nanos_per_block;
        let graph = self.graphs.get_mut(&graph).ok_or(Status::InvalidHandle)?;
        graph.nodes.push(Work {
            engine: Engine::Compute,
            duration,
            launch: true,
        });
        Ok(graph.nodes.len())
    }

    /// Number of nodes of a graph.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn graph_nodes(&self, graph: Handle) -> Result<usize> {
        let graph = self.graphs.get(&graph).ok_or(Status::InvalidHandle)?;
        Ok(graph.nodes.len())
    }

    /// Ends a graph; what was instantiated from it stays.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn destroy_graph(&mut self, graph: Handle) -> Result<()> {
        self.graphs
            .remove(&graph)
            .map(drop)
            .ok_or(Status::InvalidHandle)
    }

    /// An executable copy of a graph. 1 µs of host time for each node.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn instantiate(&mut self, graph: Handle) -> Result<(Handle, Wait)> {
        let nodes = self
            .graphs
            .get(&graph)
            .ok_or(Status::InvalidHandle)?
            .nodes
            .clone();
        let wait = Wait {
            spend: 1_000 * nodes.len() as u64,
            ..Wait::default()
        };
        let handle = self.handle();
        self.executables.insert(handle, Graph { nodes });
        Ok((handle, wait))
    }

    /// Replaces what an executable graph runs by another graph of as many nodes.
    ///
    /// # Errors
    /// `InvalidHandle`; `InvalidValue` when the number of nodes differs.
    pub fn update_executable(&mut self, executable: Handle, graph: Handle) -> Result<()> {
        let nodes = self
            .graphs
            .get(&graph)
            .ok_or(Status::InvalidHandle)?
            .nodes
            .clone();
        let target = self
            .executables
            .get_mut(&executable)
            .ok_or(Status::InvalidHandle)?;
        if target.nodes.len() != nodes.len() {
            return Err(Status::InvalidValue);
        }
        target.nodes = nodes;
        Ok(())
    }

    /// Ends an executable graph.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn destroy_executable(&mut self, executable: Handle) -> Result<()> {
        self.executables
            .remove(&executable)
            .map(drop)
            .ok_or(Status::InvalidHandle)
    }

    /// Checks that an executable graph is there.
    ///
    /// # Errors
    /// `InvalidHandle`.
    pub fn check_executable(&self, executable: Handle) -> Result<()> {
        self.executables
            .get(&executable)
            .map(drop)
            .ok_or(Status::InvalidHandle)
    }

    /// Queues all nodes of an executable graph, one after another; as one launch for the launch queue.
    ///
    /// # Errors
    /// `InvalidHandle`, `InvalidContext`.
    pub fn launch_graph(
        &mut self,
        context: Handle,
        stream: StreamRef,
        executable: Handle,
    ) -> Result<Wait> {
        let nodes = &self
            .executables
            .get(&executable)
            .ok_or(Status::InvalidHandle)?
            .nodes;
        let nodes = nodes.clone();
        let mut wait = Wait::default();
        let last = nodes.len().saturating_sub(1);
        for (index, node) in nodes.into_iter().enumerate() {
            let work = Work {
                launch: index == last,
                ..node
            };
            let (_, queue) = self.enqueue(context, stream, work)?;
            wait = queue;
        }
        Ok(wait)
    }
}
