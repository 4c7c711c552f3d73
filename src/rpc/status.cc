#include "rpc/status.h"

#include "wire/api.pb.h"

namespace godwit::rpc {
namespace {

grpc::StatusCode to_code(Errc code) {
  switch (code) {
    case Errc::refused:
      return grpc::StatusCode::FAILED_PRECONDITION;
    case Errc::not_found:
      return grpc::StatusCode::NOT_FOUND;
    case Errc::permission:
      return grpc::StatusCode::PERMISSION_DENIED;
    case Errc::invalid:
      return grpc::StatusCode::INVALID_ARGUMENT;
    case Errc::unsupported:
      return grpc::StatusCode::UNIMPLEMENTED;
    case Errc::peer_lost:
    case Errc::busy:
      return grpc::StatusCode::UNAVAILABLE;
    case Errc::timeout:
      return grpc::StatusCode::DEADLINE_EXCEEDED;
    case Errc::in_doubt:
      return grpc::StatusCode::ABORTED;
    case Errc::cancelled:
      return grpc::StatusCode::CANCELLED;
    case Errc::tracee_gone:
    case Errc::os:
    case Errc::internal:
      return grpc::StatusCode::INTERNAL;
  }
  return grpc::StatusCode::INTERNAL;
}

// Of a status that gRPC itself made: nobody answered, or not in time.
Errc from_code(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::UNAVAILABLE:
      return Errc::peer_lost;
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return Errc::timeout;
    case grpc::StatusCode::CANCELLED:
      return Errc::cancelled;
    case grpc::StatusCode::UNIMPLEMENTED:
      return Errc::unsupported;
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return Errc::refused;
    case grpc::StatusCode::NOT_FOUND:
      return Errc::not_found;
    case grpc::StatusCode::PERMISSION_DENIED:
    case grpc::StatusCode::UNAUTHENTICATED:
      return Errc::permission;
    case grpc::StatusCode::INVALID_ARGUMENT:
      return Errc::invalid;
    default:
      return Errc::internal;
  }
}

}  // namespace

grpc::Status to_status(const Error& error) {
  api::ErrorDetail detail;
  detail.set_code(static_cast<std::uint32_t>(error.code()));
  detail.set_sys_errno(error.sys_errno());
  return grpc::Status(to_code(error.code()), error.what(), detail.SerializeAsString());
}

Error from_status(const grpc::Status& status) {
  api::ErrorDetail detail;
  const bool ours = !status.error_details().empty() &&
                    detail.ParseFromString(status.error_details()) &&
                    detail.code() <= static_cast<std::uint32_t>(Errc::busy);
  const Errc code = ours ? static_cast<Errc>(detail.code()) : from_code(status.error_code());
  return Error(
      code, status.error_message().empty() ? std::string(errc_name(code)) : status.error_message(),
      ours ? detail.sys_errno() : 0);
}

}  // namespace godwit::rpc
