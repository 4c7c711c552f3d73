// Messages as JSON: the names that scripts rely on. A name once printed stays.
#pragma once

#include <nlohmann/json.hpp>

#include "base/result.h"
#include "wire/api.pb.h"

namespace godwit::cli {

using Json = nlohmann::ordered_json;

Json to_json(const api::CapsuleInfo& capsule);
Json to_json(const api::NodeInfo& node);
Json to_json(const api::MigrationResult& migration);
Json to_json(const api::MigrateProgress& progress);
Json to_json(const api::CanMigrateReply& reply);
Json to_json(const api::DoctorReply& reply);
Json to_json(const Error& error);
// {"exited": ..., "exit_code" or "signal": ...}
Json wait_to_json(bool exited, int wait_status, const std::string& note);

}  // namespace godwit::cli
