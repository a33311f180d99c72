"""gRPC services: one file each, one short method per RPC."""
