#include "migrate/commit_record.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include <array>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "base/clock.h"
#include "base/guard.h"
#include "base/io.h"
#include "base/log.h"

namespace godwit::migrate {
namespace {

struct Wire {
  char magic[8];
  std::uint32_t version;
  std::uint32_t state;
  std::uint64_t epoch;
  std::uint64_t worker_start_ticks;
  std::int32_t worker_pid;
  char boot[44];
  char reserved[40];
  std::uint64_t checksum;  // xxh3-64 of all before it.
};
static_assert(sizeof(Wire) == 128);
static_assert(offsetof(Wire, checksum) == 120);

constexpr char record_magic[8] = {'G', 'W', 'C', 'O', 'M', 'M', 'I', 'T'};

constexpr std::int64_t lock_us_max = 10'000'000;
constexpr long lock_poll_ns = 50'000;
constexpr int take_back_attempts_max = 5;

// flock belongs to the open file description, so it ends with the process, whatever ends it.
class Lock {
 public:
  // Held for the time of one write, unless its holder is stopped or its disk is.
  static Result<Lock> take(int fd, const std::string& path) {
    const std::int64_t until_us = monotonic_us() + lock_us_max;
    while (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
      if (errno == EINTR) continue;
      if (errno != EWOULDBLOCK) return os_error(fmt::format("flock({})", path));
      if (monotonic_us() > until_us)
        return make_error(Errc::timeout, "{} has been locked for {} s", path,
                          lock_us_max / 1'000'000);
      const timespec moment{0, lock_poll_ns};
      ::nanosleep(&moment, nullptr);
    }
    return Lock(fd);
  }
  Lock(Lock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Lock& operator=(Lock&&) = delete;
  ~Lock() {
    if (fd_ >= 0) ::flock(fd_, LOCK_UN);
  }

 private:
  explicit Lock(int fd) : fd_(fd) {}
  int fd_;
};

Wire encode(const RecordContent& content) {
  Wire wire{};
  std::memcpy(wire.magic, record_magic, sizeof wire.magic);
  wire.version = 1;
  wire.state = content.state;
  wire.epoch = content.epoch.value;
  wire.worker_start_ticks = content.worker_start_ticks;
  wire.worker_pid = content.worker_pid;
  INVARIANT(content.boot.size() < sizeof wire.boot, "boot={}", content.boot);
  std::memcpy(wire.boot, content.boot.data(), content.boot.size());
  wire.checksum = XXH3_64bits(&wire, offsetof(Wire, checksum));
  return wire;
}

}  // namespace

Result<CommitRecord> CommitRecord::create(const std::string& path, const RecordContent& content,
                                          bool durable) {
  Wire wire = encode(content);
  TRY(replace_file(path, std::string_view(reinterpret_cast<const char*>(&wire), sizeof wire),
                   durable));
  return open(path, durable);
}

Result<CommitRecord> CommitRecord::open(const std::string& path, bool durable) {
  Result<UniqueFd> fd = open_fd(path, O_RDWR);
  if (!fd.ok() && fd.error().sys_errno() == ENOENT)
    return make_error(Errc::not_found, "no commit record {}", path);
  if (!fd.ok()) return std::move(fd).error();
  return CommitRecord(std::move(fd).value(), path, durable);
}

Result<RecordContent> CommitRecord::read_locked() const {
  Wire wire{};
  ssize_t n = ::pread(fd_.get(), &wire, sizeof wire, 0);
  if (n < 0) return os_error(fmt::format("pread({})", path_));
  if (n != sizeof wire || std::memcmp(wire.magic, record_magic, sizeof wire.magic) != 0 ||
      wire.checksum != XXH3_64bits(&wire, offsetof(Wire, checksum)))
    return make_error(Errc::invalid, "{} is damaged", path_);
  if (wire.version != 1)
    return make_error(Errc::invalid, "{} has version {}, known is 1", path_, wire.version);
  RecordContent content;
  content.state = wire.state;
  content.epoch = Epoch{wire.epoch};
  content.boot = std::string(wire.boot, strnlen(wire.boot, sizeof wire.boot));
  content.worker_pid = wire.worker_pid;
  content.worker_start_ticks = wire.worker_start_ticks;
  return content;
}

Result<void> CommitRecord::write_locked(const RecordContent& content) const {
  Wire wire = encode(content);
  ssize_t n = ::pwrite(fd_.get(), &wire, sizeof wire, 0);
  if (n != sizeof wire) return os_error(fmt::format("pwrite({})", path_));
  if (durable_ && ::fdatasync(fd_.get()) != 0) return os_error(fmt::format("fdatasync({})", path_));
  return {};
}

Result<RecordContent> CommitRecord::read() const {
  Lock lock = TRY(Lock::take(fd_.get(), path_));
  return read_locked();
}

Result<std::uint32_t> CommitRecord::change(Epoch epoch, std::uint32_t from, std::uint32_t to) {
  Lock lock = TRY(Lock::take(fd_.get(), path_));
  RecordContent content = TRY(read_locked());
  if (content.epoch != epoch)
    return make_error(Errc::refused, "{} speaks of epoch {}, not {}", path_, content.epoch, epoch);
  if (content.state != from) return content.state;
  const RecordContent before = content;
  content.state = to;
  Result<void> written = write_locked(content);
  if (written.ok()) return to;
  take_back(before);
  return std::move(written).error();
}

// A write whose sync failed (a full disk) can be read all the same, and whoever asks would act on
// it. That the disk may still hold it is harmless: who reads it from there has booted since, which
// voids it.
void CommitRecord::take_back(const RecordContent& before) const {
  for (int attempt = 0; attempt < take_back_attempts_max; ++attempt) {
    const Wire wire = encode(before);
    if (::pwrite(fd_.get(), &wire, sizeof wire, 0) == sizeof wire) return;
  }
  // Nobody can say what stands; so nobody in this process may act on it.
  LOG(error, "{} can't be put back: {}", path_, std::strerror(errno));
  std::abort();
}

std::string journal_path(const NodeEnv& env, const CapsuleId& id) {
  return fmt::format("{}/journal/{}", env.run_dir, id);
}

std::string grant_path(const NodeEnv& env, const CapsuleId& id) {
  return fmt::format("{}/grants/{}", env.state_dir, id);
}

Result<std::uint64_t> process_start_ticks(std::int32_t pid) {
  std::string stat = TRY(read_file(fmt::format("/proc/{}/stat", pid)));
  // The command may contain blanks and brackets; fields are counted from the last bracket.
  std::size_t at = stat.rfind(')');
  if (at == std::string::npos) return make_error(Errc::invalid, "/proc/{}/stat: \"{}\"", pid, stat);
  constexpr int start_time_field = 22;
  constexpr int first_field_after_command = 3;
  at += 2;
  for (int field = first_field_after_command; field < start_time_field; ++field) {
    at = stat.find(' ', at);
    if (at == std::string::npos) return make_error(Errc::invalid, "/proc/{}/stat is short", pid);
    ++at;
  }
  std::uint64_t ticks = 0;
  auto [end, ec] = std::from_chars(stat.data() + at, stat.data() + stat.size(), ticks);
  if (ec != std::errc{}) return make_error(Errc::invalid, "/proc/{}/stat: bad start time", pid);
  return ticks;
}

bool worker_alive(const RecordContent& content) {
  if (content.worker_pid <= 0) return false;
  Result<std::uint64_t> ticks = process_start_ticks(content.worker_pid);
  return ticks.ok() && *ticks == content.worker_start_ticks;
}

}  // namespace godwit::migrate
