// An image that a stranger made: either there are reasons against restoring it, or the plans made of
// it are sound. Small inputs must not ask for much memory (a file's number is an index).
#include <google/protobuf/stubs/logging.h>

#include <cstddef>

#include "restore/map_plan.h"
#include "restore/supported.h"

using namespace godwit;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const bool quiet = (google::protobuf::SetLogHandler(nullptr), true);
  static_cast<void>(quiet);
  image::Capsule capsule;
  if (!capsule.ParseFromArray(data, static_cast<int>(size))) return 0;
  if (!restore::reasons_against(capsule, false).empty()) return 0;
  const bool complete = restore::reasons_against(capsule, true).empty();
  for (const image::Process& process : capsule.processes()) {
    const restore::VmaList want(process.mm());
    std::uint64_t mapped_to = 0;
    for (const restore::MapChange& change : restore::plan_changes({}, want)) {
      INVARIANT(change.kind == restore::MapChange::Kind::map && change.want != nullptr);
      INVARIANT(change.start >= mapped_to && change.start < change.end);
      INVARIANT(change.start >= change.want->start() && change.end <= change.want->end());
      INVARIANT(want.file_of(*change.want) != nullptr || want.file_key(*change.want).empty());
      mapped_to = change.end;
    }
    INVARIANT(restore::plan_changes(want, want).empty());
    if (!complete) continue;
    INVARIANT(process.threads_size() > 0);
  }
  return 0;
}

std::vector<std::uint8_t> fuzz_seed_input() {
  image::Capsule capsule;
  capsule.set_version(1);
  image::Process& process = *capsule.add_processes();
  process.set_pid(3);
  image::FileRef& file = *process.mutable_mm()->add_mapped();
  file.set_id(1);
  file.set_path("/lib/x");
  for (std::uint64_t start : {0x10000u, 0x20000u, 0x21000u}) {
    image::Vma& vma = *process.mutable_mm()->add_vmas();
    vma.set_start(start);
    vma.set_end(start + 0x1000);
    vma.set_prot(3);
    if (start == 0x20000) vma.set_kind(image::Vma::FILE), vma.set_file(1);
  }
  image::Thread& thread = *process.add_threads();
  thread.set_tid(3);
  thread.set_regs(std::string(27 * 8, '\0'));
  const std::string bytes = capsule.SerializeAsString();
  return {bytes.begin(), bytes.end()};
}
