//! Revisions, transactions and watches over ordered memory and a durable engine
