//! The embedded source: a folder of ordinary Kubernetes manifests.
