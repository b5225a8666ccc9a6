//! The parts that need no API server.
