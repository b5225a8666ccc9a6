//! Metrics about the configuration: plugins in use, texts in force, `/health`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::UNIX_EPOCH;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{Metrics, plain};
use crate::block::Block;
use crate::hosts::Hosts;
use crate::plugin::Plugin;

/// The parts that queries of a block pass through.
pub(super) fn plugins(encoder: &mut DescriptorEncoder<'_>, metrics: &Metrics, blocks: &[Arc<Block>]) -> fmt::Result {
    let mut family = encoder.encode_descriptor("plugin_enabled", "Parts of a server block", None, MetricType::Gauge)?;
    for block in blocks {
        let zone = crate::names::text(&block.config.domain);
        for plugin in Plugin::ALL.iter().filter(|plugin| block.config.has(**plugin)) {
            let labels = [("server", metrics.server.as_str()), ("zone", &zone), ("view", ""), ("name", plugin.name())];
            ConstGauge::new(1_i64).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

/// Equal on all servers that run the same text.
pub(super) fn version(encoder: &mut DescriptorEncoder<'_>, metrics: &Metrics) -> fmt::Result {
    let version = metrics.version.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(version) = version else { return Ok(()) };
    let mut family =
        encoder.encode_descriptor("reload_version_info", "The Corefile in force", None, MetricType::Gauge)?;
    ConstGauge::new(1_i64).encode(family.encode_family(&[("hash", "fnv1a"), ("value", &version)])?)
}

pub(super) fn hosts(encoder: &mut DescriptorEncoder<'_>, blocks: &[Arc<Block>]) -> fmt::Result {
    let hosts: Vec<&Hosts> = blocks.iter().filter_map(|block| block.hosts.as_ref()).collect();
    if hosts.is_empty() {
        return Ok(());
    }
    let mut entries: BTreeMap<String, usize> = BTreeMap::new();
    for hosts in &hosts {
        let file = hosts.file().map(|file| file.display().to_string()).unwrap_or_default();
        *entries.entry(file).or_default() += hosts.entries();
    }
    let mut family = encoder.encode_descriptor("hosts_entries", "Fixed names", None, MetricType::Gauge)?;
    for (file, entries) in &entries {
        let labels = [("hostsfile", file.as_str())];
        ConstGauge::new(i64::try_from(*entries).unwrap_or(i64::MAX)).encode(family.encode_family(&labels)?)?;
    }
    let Some(written) = hosts.iter().filter_map(|hosts| hosts.written()).max() else { return Ok(()) };
    let since = written.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let help = "Modification time of the hosts file in force";
    let descriptor = encoder.encode_descriptor("hosts_reload_timestamp_seconds", help, None, MetricType::Gauge)?;
    ConstGauge::new(since).encode(descriptor)
}

pub(super) fn health(encoder: &mut DescriptorEncoder<'_>, metrics: &Metrics) -> fmt::Result {
    let Some(health) = metrics.health.get() else { return Ok(()) };
    let name = "health_request_duration_seconds";
    let help = "How long /health took to answer the server itself";
    health.duration.encode(encoder.encode_descriptor(name, help, None, MetricType::Histogram)?)?;
    plain(encoder, "health_request_failures", "Times that /health did not answer", health.failures.get())
}
