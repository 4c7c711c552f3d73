#include "sys/file_attributes.h"

#include <sys/xattr.h>

#include <cerrno>
#include <optional>

namespace godwit::sys {
namespace {

constexpr int tries_max = 10;  // Each after a change by somebody else.

bool travels(std::string_view name) {
  if (name.starts_with("trusted.overlay.")) return false;
  return name.starts_with("user.") || name.starts_with("trusted.") ||
         name.starts_with("system.posix_acl_") || name == "security.capability";
}

Result<std::string> read_names(const std::string& path) {
  std::string names;
  for (int tries = 0; tries < tries_max; ++tries) {
    const ssize_t need = ::listxattr(path.c_str(), nullptr, 0);
    if (need < 0 && errno == EOPNOTSUPP) return names;
    if (need < 0) return os_error("listxattr(" + path + ")");
    if (need == 0) return names;
    names.resize(static_cast<std::size_t>(need));
    const ssize_t have = ::listxattr(path.c_str(), names.data(), names.size());
    if (have < 0 && errno == ERANGE) continue;
    if (have < 0) return os_error("listxattr(" + path + ")");
    names.resize(static_cast<std::size_t>(have));
    return names;
  }
  return make_error(Errc::internal, "extended attributes of {} change too fast", path);
}

// Nothing: removed since it was listed.
Result<std::optional<std::string>> read_value(const std::string& path, const std::string& name) {
  std::string value;
  for (int tries = 0; tries < tries_max; ++tries) {
    ssize_t bytes = ::getxattr(path.c_str(), name.c_str(), nullptr, 0);
    if (bytes >= 0) {
      value.resize(static_cast<std::size_t>(bytes));
      if (bytes > 0) bytes = ::getxattr(path.c_str(), name.c_str(), value.data(), value.size());
    }
    if (bytes < 0 && errno == ERANGE) continue;
    if (bytes < 0 && errno == ENODATA) return std::optional<std::string>();
    if (bytes < 0) return os_error("getxattr(" + path + ", " + name + ")");
    value.resize(static_cast<std::size_t>(bytes));
    return std::optional(std::move(value));
  }
  return make_error(Errc::internal, "extended attribute {} of {} changes too fast", name, path);
}

}  // namespace

Result<std::vector<Xattr>> read_xattrs(const std::string& path) {
  std::vector<Xattr> out;
  const std::string names = TRY(read_names(path));
  for (std::size_t at = 0; at < names.size();) {
    const std::string name = names.c_str() + at;
    at += name.size() + 1;
    if (!travels(name)) continue;
    std::optional<std::string> value = TRY(read_value(path, name));
    if (value) out.push_back({name, std::move(*value)});
  }
  return out;
}

}  // namespace godwit::sys
