// What a crash or a bad disk left of a commit record: it is read whole, or refused. Never guessed.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "base/io.h"
#include "migrate/commit_record.h"

using namespace godwit;

namespace {

constexpr std::uint64_t seed_epoch = 7;

// Named, so that the record opens it by path as it would a file.
struct File {
  UniqueFd fd{::memfd_create("record", MFD_CLOEXEC)};
  std::string path = fmt::format("/proc/self/fd/{}", fd.get());
};

}  // namespace

std::vector<std::uint8_t> fuzz_seed_input();

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::vector<std::uint8_t> good = fuzz_seed_input();
  static File file;
  INVARIANT(::ftruncate(file.fd.get(), static_cast<off_t>(size)) == 0);
  INVARIANT(::pwrite(file.fd.get(), data, size, 0) == static_cast<ssize_t>(size));
  Result<migrate::CommitRecord> record = migrate::CommitRecord::open(file.path, false);
  if (!record.ok()) return 0;
  Result<migrate::RecordContent> content = record->read();
  if (!content.ok()) return 0;
  // 64 bits of checksum: what is accepted is what was written.
  INVARIANT(size >= good.size() && std::equal(good.begin(), good.end(), data));
  INVARIANT(content->epoch.value == seed_epoch);
  return 0;
}

std::vector<std::uint8_t> fuzz_seed_input() {
  std::string path = fmt::format("/tmp/commit-record-fuzz-{}", ::getpid());
  migrate::RecordContent content;
  content.state = 1;
  content.epoch = Epoch{seed_epoch};
  content.boot = "a boot";
  content.worker_pid = 42;
  INVARIANT(migrate::CommitRecord::create(path, content, false).ok());
  const std::string bytes = std::move(read_file(path)).value();
  ::unlink(path.c_str());
  return {bytes.begin(), bytes.end()};
}
