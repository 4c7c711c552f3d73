// What this kernel and machine offer to godwit, found out by trying, and what godwit does where
// something is missing.
#pragma once

#include "base/result.h"
#include "daemon/config.h"
#include "wire/api.pb.h"

namespace godwit::daemon {

Result<api::DoctorReply> examine(const Config& config);

}  // namespace godwit::daemon
