// Private files and shared memory: content by pages, whoever wrote it and how; and what the target
// does with frames that no honest source sends.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <future>
#include <random>

#include "base/ids.h"
#include "memory/stream_writer.h"
#include "memory/testbed.h"
#include "sys/memory_io.h"
#include "wire/frame.h"

namespace godwit::memory::testing {
namespace {

constexpr SpaceId file_space = wire::file_space_bit | 5;

UniqueFd make_memfd() {
  UniqueFd fd(::memfd_create("godwit-test", MFD_CLOEXEC));
  INVARIANT(fd.valid(), "memfd_create errno={}", errno);
  return fd;
}

std::string content(int fd) {
  struct stat st;
  EXPECT_EQ(::fstat(fd, &st), 0);
  std::string out(static_cast<std::size_t>(st.st_size), '\0');
  EXPECT_EQ(::pread(fd, out.data(), out.size(), 0), st.st_size);
  return out;
}

std::uint64_t blocks(int fd) {
  struct stat st;
  EXPECT_EQ(::fstat(fd, &st), 0);
  return static_cast<std::uint64_t>(st.st_blocks);
}

// A file here, a file there, and rounds between them.
struct FileBed {
  UniqueFd from = make_memfd();
  UniqueFd to = make_memfd();
  std::vector<StreamPair> streams;
  SourceMemory source{{}};
  std::unique_ptr<TargetMemory> target;
  std::uint64_t number = 0;

  FileBed() {
    for (int i = 0; i < 2; ++i) streams.push_back(make_stream());
    EXPECT_TRUE(source.add_file(file_space, duplicate(from.get()).value()).ok());
    target = std::make_unique<TargetMemory>(
        TargetMemory::Options{.lookup = [this](SpaceId space) -> Result<SpaceTarget> {
                                if (space != file_space)
                                  return make_error(Errc::not_found, "space {:#x}", space);
                                SpaceTarget out;
                                out.file_fd = to.get();
                                return out;
                              },
                              .drop = {}});
    for (StreamPair& stream : streams) EXPECT_TRUE(target->add_stream(stream.target.get()).ok());
  }

  RoundStats round(RoundKind kind) {
    ++number;
    const int fds[] = {streams[0].source.get(), streams[1].source.get()};
    auto sending = std::async(std::launch::async, [&] {
      return source.send_round(fds, {.round = number, .kind = kind, .eager = {}});
    });
    Result<ReceivedRound> received = target->wait_round(number, generous_ms);
    EXPECT_TRUE(received.ok()) << received.error().what();
    Result<RoundStats> sent = sending.get();
    EXPECT_TRUE(sent.ok()) << sent.error().what();
    return sent.ok() ? *sent : RoundStats{};
  }

  // As restore does it at the end.
  void finish() {
    struct stat st;
    ASSERT_EQ(::fstat(from.get(), &st), 0);
    ASSERT_EQ(::ftruncate(to.get(), st.st_size), 0);
    EXPECT_TRUE(content(from.get()) == content(to.get()));
  }
};

void write_at(int fd, std::uint64_t at, const std::string& text) {
  ASSERT_EQ(::pwrite(fd, text.data(), text.size(), static_cast<off_t>(at)),
            static_cast<ssize_t>(text.size()));
}

TEST(Files, OnlyWhatChangedIsSentAgainHoweverItWasWritten) {
  FileBed bed;
  constexpr std::uint64_t pages = 3'000;
  ASSERT_EQ(::ftruncate(bed.from.get(), pages * page_bytes), 0);
  for (std::uint64_t i = 0; i < pages; ++i)
    write_at(bed.from.get(), i * page_bytes, fmt::format("page {}", i));
  EXPECT_EQ(bed.round(RoundKind::precopy).pages, pages);
  EXPECT_EQ(bed.round(RoundKind::precopy).pages, 0u);

  auto* mapped = static_cast<char*>(
      ::mmap(nullptr, pages * page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, bed.from.get(), 0));
  ASSERT_NE(mapped, MAP_FAILED);
  mapped[100 * page_bytes + 9] = 'x';
  write_at(bed.from.get(), 200 * page_bytes, "by write");
  EXPECT_EQ(bed.round(RoundKind::last).pages, 2u);
  ::munmap(mapped, pages * page_bytes);
  bed.finish();
}

TEST(Files, HolesZerosAndEndsArriveAsSuch) {
  FileBed bed;
  ASSERT_EQ(::ftruncate(bed.from.get(), 1'000 * page_bytes), 0);
  write_at(bed.from.get(), 10 * page_bytes, std::string(20 * page_bytes, 'a'));
  write_at(bed.from.get(), 900 * page_bytes, std::string(50 * page_bytes, 'b'));
  EXPECT_EQ(bed.round(RoundKind::precopy).pages, 70u);
  EXPECT_LE(blocks(bed.to.get()), 71 * page_bytes / 512) << "holes stay holes";
  // A hole is punched, zeros are written, the end is cut within a page.
  ASSERT_EQ(::fallocate(bed.from.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 12 * page_bytes,
                        5 * page_bytes),
            0);
  write_at(bed.from.get(), 20 * page_bytes, std::string(3 * page_bytes, '\0'));
  ASSERT_EQ(::ftruncate(bed.from.get(), 905 * page_bytes + 77), 0);
  RoundStats last = bed.round(RoundKind::last);
  EXPECT_EQ(last.pages, 1u) << "the page with the end";
  EXPECT_EQ(last.pages_dropped, 5u + 3u + 44u);
  bed.finish();
  EXPECT_LE(blocks(bed.to.get()), 18 * page_bytes / 512);
}

TEST(Files, AnAnnouncingRoundLeavesThemForTheLast) {
  FileBed bed;
  write_at(bed.from.get(), 0, "something");
  EXPECT_EQ(bed.round(RoundKind::announce).pages, 0u);
  EXPECT_EQ(bed.round(RoundKind::last_postcopy).pages, 1u);
  bed.finish();
}

// What a stream may carry that isn't right, and how the target answers.
Errc refusal(const std::function<void(StreamWriter&, int fd)>& misbehave) {
  FileBed bed;
  StreamWriter writer(bed.streams[0].source.get());
  misbehave(writer, bed.streams[0].source.get());
  EXPECT_TRUE(writer.flush().ok());
  Result<ReceivedRound> received = bed.target->wait_round(1, generous_ms);
  EXPECT_FALSE(received.ok());
  // The liar's stream is shut down too.
  std::byte byte;
  EXPECT_FALSE(sys::receive_exact(bed.streams[0].source.get(), {&byte, 1}).ok());
  return received.ok() ? Errc::internal : received.error().code();
}

void send_header(int fd, const wire::FrameHeader& header) {
  wire::FrameHeaderBytes bytes = wire::encode(header);
  ASSERT_EQ(::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(bytes.size()));
}

TEST(HostileFrames, EndTheMigrationAndNothingElse) {
  alignas(page_bytes) static const std::byte page[page_bytes] = {};
  EXPECT_EQ(refusal([](StreamWriter&, int fd) {
              const std::string noise(4'096, 'n');
              ASSERT_GT(::send(fd, noise.data(), noise.size(), MSG_NOSIGNAL), 0);
            }),
            Errc::invalid);
  EXPECT_EQ(refusal([](StreamWriter& w, int) { w.data(77, {.page = 1, .pages = 1}, page); }),
            Errc::not_found);
  EXPECT_EQ(refusal([](StreamWriter& w, int) {
              w.run(wire::FrameType::request, file_space, {.page = 1, .pages = 1});
            }),
            Errc::invalid);
  EXPECT_EQ(refusal([](StreamWriter& w, int) {
              w.run(wire::FrameType::pending, file_space, {.page = 1, .pages = 1});
            }),
            Errc::invalid);
  EXPECT_EQ(refusal([](StreamWriter& w, int) {
              w.data(file_space, {.page = 1, .pages = 1}, page, wire::FrameType::urgent);
            }),
            Errc::invalid);
  EXPECT_EQ(refusal([](StreamWriter&, int fd) {  // Counts that don't agree.
              send_header(fd, {.type = wire::FrameType::round_end,
                               .offset = 1,
                               .payload_bytes = wire::round_counts_bytes});
              const wire::RoundCountsBytes counts = wire::encode(wire::RoundCounts{.frames = 3});
              ASSERT_GT(::send(fd, counts.data(), counts.size(), MSG_NOSIGNAL), 0);
            }),
            Errc::invalid);
  EXPECT_EQ(refusal([](StreamWriter&, int fd) {  // A frame that never ends.
              send_header(fd, {.type = wire::FrameType::data,
                               .space = file_space,
                               .pages = 256,
                               .payload_bytes = 256 * page_bytes});
              ::shutdown(fd, SHUT_WR);
            }),
            Errc::peer_lost);
}

TEST(HostileFrames, DropsOfHugeUnmappedRunsAreHarmless) {
  FileBed bed;
  StreamWriter first(bed.streams[0].source.get());
  StreamWriter second(bed.streams[1].source.get());
  for (int i = 0; i < 200; ++i)
    first.run(wire::FrameType::drop, 4'711, {.page = 0, .pages = wire::frame_run_pages_max});
  ASSERT_TRUE(first.end_round(1).ok());
  ASSERT_TRUE(second.end_round(1).ok());
  Result<ReceivedRound> received = bed.target->wait_round(1, generous_ms);
  EXPECT_TRUE(received.ok()) << received.error().what();
}

}  // namespace
}  // namespace godwit::memory::testing
