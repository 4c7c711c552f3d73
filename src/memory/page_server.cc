// Post-copy on the source: the tree is frozen for good, its pages leave in two ways.
//
// Pushing: a thread for each stream takes what is left, from where the last fault was. Requests:
// one thread, of a higher priority, on a connection of its own, since behind a full bulk socket an
// answer would wait for milliseconds (a fault took 147 to 273 us with a background push on the same
// socket, 25 without). The page asked for leaves at once; its neighbourhood follows unless somebody
// else asks: 16 times fewer faults for a program that walks through its memory.
//
// A page that was taken for pushing already is answered all the same: it may stand in the bulk
// socket for long. The target keeps whichever comes first; both are equal, the source being frozen.
#include <poll.h>

#include <algorithm>
#include <mutex>
#include <thread>

#include "base/clock.h"
#include "base/ids.h"
#include "base/thread_name.h"
#include "memory/source_impl.h"
#include "sys/memory_io.h"
#include "sys/thread_priority.h"

namespace godwit::memory {
namespace {

constexpr std::uint64_t neighbourhood_pages = 16;  // 64 KiB with the page asked for.

struct ServedSpace {
  SpaceId id;
  PageSource* source;
  PageSet left;     // To be pushed.
  PageSet pending;  // All that the target ever lacked.
};

class PageServer {
 public:
  PageServer(std::vector<ServedSpace> spaces, int urgent, std::span<const int> streams,
             std::uint64_t round, std::atomic<std::uint64_t>& left)
      : spaces_(std::move(spaces)),
        urgent_(urgent),
        round_(round),
        left_(left),
        cursors_(streams.size()),
        streams_(streams.begin(), streams.end()) {}

  Result<DrainStats> run() {
    const std::int64_t start_us = monotonic_us();
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < streams_.size(); ++i) threads.emplace_back([this, i] { push(i); });
    Result<void> served = serve();
    if (!served.ok()) {
      stop_ = true;
      // A pusher may block in a send.
      for (int stream : streams_) sys::shutdown_socket(stream);
    }
    for (std::thread& thread : threads) thread.join();
    if (error_) return std::move(*error_);
    if (!served.ok()) return std::move(served).error();
    stats_.us = monotonic_us() - start_us;
    return stats_;
  }

 private:
  struct Cursor {
    std::size_t space = 0;
    std::uint64_t page = 0;
  };

  // Takes up to a batch, behind the cursor of this stream first.
  ServedSpace* take(std::size_t stream, std::vector<PageRun>& out) {
    std::lock_guard lock(mutex_);
    out.clear();
    Cursor& cursor = cursors_[stream];
    for (std::size_t tried = 0; tried <= spaces_.size(); ++tried) {
      ServedSpace& space = spaces_[cursor.space];
      std::uint64_t room = batch_pages;
      while (room > 0) {
        const PageRun run = space.left.next_run(cursor.page, room);
        if (run.pages == 0) break;
        space.left.remove(run.page, run.pages);
        out.push_back(run);
        room -= run.pages;
        cursor.page = run.end();
      }
      if (!out.empty()) {
        left_ -= batch_pages - room;
        return &space;
      }
      // Behind the cursor there is nothing: from the beginning, then the next space.
      if (cursor.page != 0 && !space.left.empty()) {
        cursor.page = 0;
        --tried;
      } else {
        cursor = {.space = (cursor.space + 1) % spaces_.size(), .page = 0};
      }
    }
    return nullptr;
  }

  void push(std::size_t stream) {
    name_thread("godwit-push");
    sys::shorten_thread_slice();
    StreamWriter writer(streams_[stream]);
    BatchSender sender(writer);
    sender.tell_every_zero();
    std::vector<PageRun> runs;
    Result<void> done;
    while (!stop_ && done.ok()) {
      ServedSpace* space = spaces_.empty() ? nullptr : take(stream, runs);
      if (space == nullptr) break;
      done = send(sender, *space, runs);
    }
    if (done.ok() && !stop_) done = writer.end_round(round_);
    std::lock_guard lock(mutex_);
    stats_.pages_pushed += sender.totals().pages;
    stats_.pages_zero += sender.totals().pages_zero;
    stats_.bytes += writer.bytes_sent();
    if (!done.ok()) fail(std::move(done).error());
  }

  static Result<void> send(BatchSender& sender, ServedSpace& space, std::span<const PageRun> runs) {
    SendJob outcome{.space = space.id,
                    .source = space.source,
                    .runs = {},
                    .sent = {},
                    .zero = {},
                    .unreadable = {}};
    TRY(sender.send(outcome, runs));
    const PageRun lost = outcome.unreadable.next_run(0, 1);
    if (lost.pages != 0)
      return make_error(Errc::tracee_gone, "page {:#x} of space {:#x} can't be read any more",
                        lost.page * page_bytes, space.id);
    return {};
  }

  void fail(Error error) {  // mutex_ is held
    if (!error_) error_ = std::move(error);
    stop_ = true;
    sys::shutdown_socket(urgent_);  // Wakes the server.
  }

  // Requests and acknowledgements, until every stream is acknowledged.
  Result<void> serve() {
    name_thread("godwit-serve");
    const bool raised = sys::raise_thread_priority();
    (void)raised;  // Slower faults are all that is lost.
    StreamWriter writer(urgent_);
    BatchSender sender(writer, wire::FrameType::urgent);
    sender.tell_every_zero();
    std::vector<pollfd> waiting{{.fd = urgent_, .events = POLLIN, .revents = 0}};
    for (int stream : streams_) waiting.push_back({.fd = stream, .events = POLLIN, .revents = 0});
    std::size_t acks = 0;
    Result<void> result;
    while (result.ok() && acks < streams_.size()) {
      if (::poll(waiting.data(), waiting.size(), -1) < 0 && errno != EINTR) {
        result = os_error("poll");
        break;
      }
      if (waiting[0].revents != 0) result = answer_requests(sender);
      for (std::size_t i = 1; i < waiting.size() && result.ok(); ++i) {
        if (waiting[i].revents == 0 || waiting[i].fd < 0) continue;
        result = read_ack(waiting[i].fd, round_, 1'000);
        waiting[i].fd = -1;  // poll(2) ignores it.
        ++acks;
      }
    }
    // The target closes its links once it has everything, also while an answer that it no longer
    // needs is on its way: what counts is whether it acknowledged.
    if (!result.ok()) {
      bool acknowledged = true;
      for (std::size_t i = 1; i < waiting.size() && acknowledged; ++i)
        acknowledged = waiting[i].fd < 0 || read_ack(waiting[i].fd, round_, 1'000).ok();
      if (acknowledged) result = {};
    }
    std::lock_guard lock(mutex_);
    stats_.bytes += writer.bytes_sent();
    return result;
  }

  Result<void> answer_requests(BatchSender& sender) {
    std::array<std::byte, 64 * wire::frame_header_bytes> buffer;
    const std::size_t n = TRY(sys::receive_available(urgent_, buffer));
    const std::size_t torn = n % wire::frame_header_bytes;
    const std::size_t whole = torn == 0 ? n : n + wire::frame_header_bytes - torn;
    if (torn != 0) TRY(sys::receive_exact(urgent_, std::span(buffer).subspan(n, whole - n)));
    for (std::size_t at = 0; at < whole; at += wire::frame_header_bytes) {
      const wire::FrameHeader request =
          TRY(wire::decode_header(std::span<const std::byte, wire::frame_header_bytes>(
              &buffer[at], wire::frame_header_bytes)));
      if (request.type != wire::FrameType::request)
        return make_error(Errc::invalid, "frame type {} on the urgent stream",
                          static_cast<int>(request.type));
      const bool more_wait = at + wire::frame_header_bytes < whole;
      TRY(answer(sender, request.space, request.offset / page_bytes, more_wait));
    }
    return {};
  }

  Result<void> answer(BatchSender& sender, SpaceId id, std::uint64_t page, bool more_wait) {
    auto space = std::find_if(spaces_.begin(), spaces_.end(),
                              [id](const ServedSpace& s) { return s.id == id; });
    if (space == spaces_.end() || !space->pending.contains(page))
      return make_error(Errc::invalid, "page {:#x} of space {:#x} was asked for, but isn't missing",
                        page * page_bytes, id);
    {
      std::lock_guard lock(mutex_);
      claim(*space, {.page = page, .pages = 1});
      ++stats_.pages_requested;
    }
    const PageRun one{.page = page, .pages = 1};
    TRY(send(sender, *space, std::span(&one, 1)));
    if (more_wait || TRY(sys::wait_readable(urgent_, 0))) return {};
    std::vector<PageRun> neighbours;
    {
      std::lock_guard lock(mutex_);
      for (std::uint64_t at = page + 1; at < page + neighbourhood_pages;) {
        const PageRun run = space->left.next_run(at, page + neighbourhood_pages - at);
        if (run.pages == 0 || run.page >= page + neighbourhood_pages) break;
        const PageRun inside{.page = run.page,
                             .pages = std::min(run.end(), page + neighbourhood_pages) - run.page};
        claim(*space, inside);
        neighbours.push_back(inside);
        stats_.pages_neighbour += inside.pages;
        at = inside.end();
      }
      // Pushing goes on behind: where the program is, it will soon want more.
      Cursor& cursor = cursors_[next_cursor_++ % cursors_.size()];
      cursor = {.space = static_cast<std::size_t>(space - spaces_.begin()),
                .page = page + neighbourhood_pages};
    }
    if (!neighbours.empty()) TRY(send(sender, *space, neighbours));
    return {};
  }

  void claim(ServedSpace& space, const PageRun& run) {  // mutex_ is held
    left_ -= space.left.count(run.page, run.pages);
    space.left.remove(run.page, run.pages);
  }

  std::mutex mutex_;  // Guards left sets, cursors, stats and error.
  std::vector<ServedSpace> spaces_;
  const int urgent_;
  const std::uint64_t round_;
  std::atomic<std::uint64_t>& left_;
  std::vector<Cursor> cursors_;
  std::size_t next_cursor_ = 0;
  const std::vector<int> streams_;
  std::atomic<bool> stop_{false};
  std::optional<Error> error_;
  DrainStats stats_;
};

}  // namespace

Result<DrainStats> SourceMemory::serve(int urgent, std::span<const int> streams,
                                       std::uint64_t round) {
  if (!impl_->acks_due.empty()) TRY(await_ack(streams, impl_->acks_due.back(), 60'000));
  std::vector<ServedSpace> spaces;
  for (auto& [id, process] : impl_->processes)
    if (!process.pending.empty())
      spaces.push_back({.id = id,
                        .source = process.source.get(),
                        .left = process.pending,
                        .pending = process.pending});
  return PageServer(std::move(spaces), urgent, streams, round, impl_->pages_pending)
      .run()
      .with("serve missing pages");
}

}  // namespace godwit::memory
