// Users, from the passwd and group databases of this node.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace godwit::daemon {

struct Account {
  std::string name;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::string home;
  std::vector<std::uint32_t> groups;  // Supplementary, with gid.
};

Result<Account> account_of(std::uint32_t uid);           // Errc::not_found
Result<Account> account_named(const std::string& name);  // A name, or a number.

// On the target of a migration: why the capsule's user isn't the same here; empty if it is.
std::string account_mismatch(const std::string& name, std::uint32_t uid);

}  // namespace godwit::daemon
