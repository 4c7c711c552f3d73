// Error <-> grpc::Status. gRPC's codes are for clients in other languages; ours travels beside.
#pragma once

#include <grpcpp/support/status.h>

#include "base/result.h"

namespace godwit::rpc {

grpc::Status to_status(const Error& error);
Error from_status(const grpc::Status& status);

}  // namespace godwit::rpc
