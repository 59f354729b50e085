//! The Kubernetes object model as data: names, schema, defaults, validation, columns
