#include "migrate/eager_pages.h"

#include <sys/user.h>

#include <cstring>

#include "restore/restorer.h"

namespace godwit::migrate {

std::vector<memory::RoundOptions::Range> touched_at_once(const image::Capsule& image) {
  std::vector<memory::RoundOptions::Range> ranges;
  for (const image::Process& process : image.processes()) {
    auto space = static_cast<memory::SpaceId>(process.pid());
    for (const restore::MemoryRange& range : restore::Restorer::pages_needed(process))
      ranges.push_back({.space = space, .start = range.start, .end = range.end});
    for (const image::Thread& thread : process.threads()) {
      user_regs_struct regs{};
      if (thread.regs().size() != sizeof regs) continue;
      std::memcpy(&regs, thread.regs().data(), sizeof regs);
      ranges.push_back({.space = space,
                        .start = regs.rsp & ~(page_bytes - 1),
                        .end = (regs.rsp & ~(page_bytes - 1)) + 2 * page_bytes});
      ranges.push_back({.space = space,
                        .start = regs.fs_base & ~(page_bytes - 1),
                        .end = (regs.fs_base & ~(page_bytes - 1)) + page_bytes});
    }
  }
  return ranges;
}

}  // namespace godwit::migrate
