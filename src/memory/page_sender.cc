#include "memory/page_sender.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <thread>

#include "base/ids.h"
#include "sys/thread_priority.h"

namespace godwit::memory {
namespace {

constexpr std::uint64_t huge_pages = huge_page_bytes / page_bytes;
// Below this a thread costs more than it brings.
constexpr std::uint64_t pages_for_threads = 512;

class WorkQueue {
 public:
  explicit WorkQueue(std::span<SendJob> jobs) : jobs_(jobs) {}

  // The next runs, all of one job: a batch of them, or what is left of one huge page.
  SendJob* take(std::vector<PageRun>& out) {
    std::lock_guard lock(mutex_);
    out.clear();
    while (job_ < jobs_.size() && run_ == jobs_[job_].runs.size()) {
      ++job_;
      run_ = 0;
      done_ = 0;
    }
    if (job_ == jobs_.size() || stopped_) return nullptr;
    SendJob& job = jobs_[job_];
    std::uint64_t room = batch_pages;
    while (run_ < job.runs.size() && room > 0) {
      const PageRun& run = job.runs[run_];
      if (run.huge && !out.empty()) break;
      const std::uint64_t page = run.page + done_;
      if (run.huge) room = huge_pages - page % huge_pages;
      const std::uint64_t pages = std::min(room, run.pages - done_);
      out.push_back({.page = page, .pages = pages, .huge = run.huge});
      room -= pages;
      done_ += pages;
      if (done_ == run.pages) {
        ++run_;
        done_ = 0;
      }
      if (run.huge) break;
    }
    return &job;
  }

  void stop() {
    std::lock_guard lock(mutex_);
    stopped_ = true;
  }

 private:
  std::mutex mutex_;
  std::span<SendJob> jobs_;
  std::size_t job_ = 0;
  std::size_t run_ = 0;
  std::uint64_t done_ = 0;  // Of this run.
  bool stopped_ = false;
};

// A thread's own outcome, merged at its end.
struct Outcome {
  std::vector<SendJob> jobs;
  SendTotals totals;
  std::optional<Error> error;
};

// `all`: a stream that fails ends the round. The peer may read none of the others any more, so that
// a thread would wait in its send for ever.
void work(WorkQueue& queue, std::span<SendJob> jobs, std::span<StreamWriter> all,
          StreamWriter& writer, Outcome& outcome) {
  outcome.jobs.resize(jobs.size());
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    outcome.jobs[i].space = jobs[i].space;
    outcome.jobs[i].source = jobs[i].source;
  }
  BatchSender sender(writer);
  std::vector<PageRun> runs;
  while (SendJob* job = queue.take(runs)) {
    SendJob& result = outcome.jobs[static_cast<std::size_t>(job - jobs.data())];
    Result<void> sent;
    // A huge page is more than a batch.
    while (sent.ok() && runs[0].pages > batch_pages) {
      const PageRun piece{.page = runs[0].page, .pages = batch_pages, .huge = runs[0].huge};
      sent = sender.send(result, std::span(&piece, 1));
      runs[0].page += batch_pages;
      runs[0].pages -= batch_pages;
    }
    if (sent.ok()) sent = sender.send(result, runs);
    if (!sent.ok()) {
      outcome.error = std::move(sent).error();
      queue.stop();
      for (const StreamWriter& each : all) each.shut_down();
      break;
    }
  }
  outcome.totals = sender.totals();
}

}  // namespace

void BatchSender::Free::operator()(std::byte* p) const { std::free(p); }

BatchSender::BatchSender(StreamWriter& writer, wire::FrameType type)
    : writer_(writer),
      type_(type),
      buffer_(static_cast<std::byte*>(std::aligned_alloc(page_bytes, batch_pages * page_bytes))),
      verdicts_(batch_pages) {
  INVARIANT(buffer_ != nullptr, "no memory for a batch");
}

// Splits a run by verdicts into frames.
void BatchSender::queue(SendJob& outcome, const PageRun& run, std::size_t first_index) {
  for (std::uint64_t i = 0; i < run.pages;) {
    const Verdict verdict = verdicts_[first_index + i];
    std::uint64_t n = 1;
    while (i + n < run.pages && verdicts_[first_index + i + n] == verdict) ++n;
    const PageRun part{.page = run.page + i, .pages = n, .huge = run.huge};
    const std::byte* at = buffer_.get() + (first_index + i) * page_bytes;
    i += n;
    switch (verdict) {
      case Verdict::send:
        writer_.data(outcome.space, part, at, type_);
        outcome.sent.add(part.page, part.pages);
        totals_.pages += n;
        break;
      case Verdict::zero:
        outcome.zero.add(part.page, part.pages);
        totals_.pages_zero += n;
        for (std::uint64_t page = part.page; page < part.end();) {
          std::uint64_t end = page + 1;
          const bool tell = tell_every_zero_ || outcome.source->target_has(page);
          while (end < part.end() && (tell_every_zero_ || outcome.source->target_has(end)) == tell)
            ++end;
          if (tell) {
            writer_.run(wire::FrameType::drop, outcome.space, {.page = page, .pages = end - page});
            totals_.pages_dropped += end - page;
          }
          page = end;
        }
        break;
      case Verdict::unreadable:
        outcome.unreadable.add(part.page, part.pages);
        break;
      case Verdict::unchanged:
        break;
    }
  }
}

Result<void> BatchSender::send(SendJob& outcome, std::span<const PageRun> runs) {
  std::uint64_t pages = 0;
  for (const PageRun& run : runs) pages += run.pages;
  INVARIANT(pages <= batch_pages, "{} pages in a batch", pages);
  TRY(outcome.source->fetch(runs, buffer_.get(), std::span(verdicts_).first(pages))
          .with(fmt::format("space {:#x}", outcome.space)));
  std::size_t index = 0;
  for (const PageRun& run : runs) {
    queue(outcome, run, index);
    index += run.pages;
  }
  return writer_.flush();
}

Result<SendTotals> send_jobs(std::span<SendJob> jobs, std::span<StreamWriter> writers) {
  INVARIANT(!writers.empty(), "no stream");
  std::uint64_t pages = 0;
  for (const SendJob& job : jobs)
    for (const PageRun& run : job.runs) pages += run.pages;
  WorkQueue queue(jobs);
  const std::size_t workers = pages < pages_for_threads ? 1 : writers.size();
  std::vector<Outcome> outcomes(workers);
  std::vector<std::thread> threads;
  for (std::size_t i = 1; i < workers; ++i)
    threads.emplace_back([&, i] {
      sys::shorten_thread_slice();
      work(queue, jobs, writers, writers[i], outcomes[i]);
    });
  work(queue, jobs, writers, writers[0], outcomes[0]);
  for (std::thread& thread : threads) thread.join();

  SendTotals totals;
  std::optional<Error> error;
  for (Outcome& outcome : outcomes) {
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      jobs[i].sent.add(outcome.jobs[i].sent);
      jobs[i].zero.add(outcome.jobs[i].zero);
      jobs[i].unreadable.add(outcome.jobs[i].unreadable);
    }
    totals.pages += outcome.totals.pages;
    totals.pages_zero += outcome.totals.pages_zero;
    totals.pages_dropped += outcome.totals.pages_dropped;
    if (outcome.error && !error) error = std::move(outcome.error);
  }
  if (error) return std::move(*error);
  return totals;
}

}  // namespace godwit::memory
