//! Containers under keepers: processes, namespaces, cgroups, logs
