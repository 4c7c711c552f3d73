#include "daemon/accounts.h"

#include <grp.h>
#include <pwd.h>

#include <charconv>
#include <functional>

namespace godwit::daemon {
namespace {

// Calls one of getpw*_r, with a buffer that grows as it asks for.
Result<Account> look_up(const std::string& who,
                        const std::function<int(passwd*, char*, std::size_t, passwd**)>& get) {
  std::vector<char> buffer(4096);
  passwd entry{};
  passwd* found = nullptr;
  int error = 0;
  while ((error = get(&entry, buffer.data(), buffer.size(), &found)) == ERANGE &&
         buffer.size() < (1 << 20)) {
    buffer.resize(buffer.size() * 2);
  }
  if (error != 0 && found == nullptr && error != ENOENT && error != ESRCH) {
    return os_error(fmt::format("getpwnam({})", who), error);
  }
  if (found == nullptr) return make_error(Errc::not_found, "there is no user {} here", who);

  Account account{entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir, {}};
  int count = 64;
  std::vector<gid_t> groups(static_cast<std::size_t>(count));
  while (getgrouplist(entry.pw_name, entry.pw_gid, groups.data(), &count) < 0) {
    if (count > 65536) return make_error(Errc::internal, "user {} is in too many groups", who);
    groups.resize(static_cast<std::size_t>(count));
  }
  groups.resize(static_cast<std::size_t>(count));
  account.groups.assign(groups.begin(), groups.end());
  return account;
}

}  // namespace

Result<Account> account_of(std::uint32_t uid) {
  return look_up(fmt::format("with uid {}", uid),
                 [&](passwd* entry, char* buffer, std::size_t size, passwd** found) {
                   return getpwuid_r(uid, entry, buffer, size, found);
                 });
}

Result<Account> account_named(const std::string& name) {
  std::uint32_t uid = 0;
  const char* end = name.data() + name.size();
  const auto parsed = std::from_chars(name.data(), end, uid);
  if (!name.empty() && parsed.ec == std::errc() && parsed.ptr == end) return account_of(uid);
  return look_up(name, [&](passwd* entry, char* buffer, std::size_t size, passwd** found) {
    return getpwnam_r(name.c_str(), entry, buffer, size, found);
  });
}

std::string account_mismatch(const std::string& name, std::uint32_t uid) {
  auto here = account_of(uid);
  if (!here.ok()) return fmt::format("user {} (uid {}) does not exist there", name, uid);
  if (here->name != name) {
    return fmt::format("uid {} is {} there, not {}", uid, here->name, name);
  }
  return "";
}

}  // namespace godwit::daemon
