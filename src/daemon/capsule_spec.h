// What a capsule is told to be, from what a user asked for.
#pragma once

#include <cstdint>
#include <string>

#include "capsule/init_client.h"
#include "daemon/accounts.h"
#include "daemon/config.h"
#include "image/image.pb.h"
#include "wire/api.pb.h"

namespace godwit::daemon {

image::CapsuleSpec make_spec(const Config& config, const api::RunRequest& request,
                             const Account& account, const std::string& id, const std::string& name,
                             const std::string& ip, std::uint32_t prefix_len);
capsule::SpawnRequest make_spawn(const image::CapsuleSpec& spec, const api::RunRequest& request);

}  // namespace godwit::daemon
