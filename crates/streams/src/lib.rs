//! Framing of exec, attach and port-forward: SPDY/3.1 and channel.k8s.io, without IO
