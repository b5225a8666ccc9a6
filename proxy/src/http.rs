//! What the daemon serves over HTTP: health, metrics, and the health checks of Services.

pub mod health;
pub mod health_checks;
