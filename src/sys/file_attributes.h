// Extended attributes of a file that a program set, or that change who may use it.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"

namespace godwit::sys {

struct Xattr {
  std::string name, value;
};

// Of what `path` leads to: user.*, trusted.*, POSIX access lists and file capabilities. Not labels
// of security modules, which are each node's own, nor overlayfs' own notes. None where the file
// system has none.
Result<std::vector<Xattr>> read_xattrs(const std::string& path);

}  // namespace godwit::sys
