//! Sends annotations to the agent's socket.
