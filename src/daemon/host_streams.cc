// Host: signals, streams and the end of capsules.
// clang-format off: <signal.h> has a macro named as a field of the image.
#include "daemon/host.h"
// clang-format on

#include <signal.h>
#include <sys/wait.h>

#include <algorithm>

#include "base/clock.h"
#include "base/log.h"
#include "capsule/shell.h"

namespace godwit::daemon {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Longest that a signal waits for the end of a freeze before its sender is told to try again.
constexpr seconds signal_wait_max{30};
constexpr std::int64_t wait_slice_us_max = 10'000'000;
constexpr int chunk_bytes_max = 64 * 1024;

Result<node::SavedLog> read_log(capsule::InitClient& init, std::uint64_t from) {
  node::SavedLog log;
  const auto status = TRY(init.status());
  from = std::max(from, status.out_begin);
  while (true) {
    auto chunk = TRY(init.read_log(from));
    if (chunk.bytes.empty()) break;
    from = chunk.from + chunk.bytes.size();
    auto* saved = log.add_chunks();
    saved->set_from(chunk.from);
    saved->set_stream(static_cast<std::uint32_t>(chunk.stream));
    saved->set_data(std::move(chunk.bytes));
  }
  log.set_end(from);
  return log;
}

}  // namespace

// ---- The end ----

void Host::queue_reap(const std::string& id) {
  const std::lock_guard lock(reap_mutex_);
  reap_queue_.push_back(id);
  reap_changed_.notify_all();
}

void Host::reaper() {
  std::unique_lock lock(reap_mutex_);
  while (true) {
    reap_changed_.wait(lock, [&] { return stop_ || !reap_queue_.empty(); });
    if (stop_) return;
    const std::string id = std::move(reap_queue_.front());
    reap_queue_.pop_front();
    lock.unlock();
    reap(id);
    lock.lock();
  }
}

void Host::reap(const std::string& id) {
  auto capsule = by_id(id);
  if (!capsule) return;
  std::optional<int> status;
  {
    const std::lock_guard lock(capsule->mutex);
    // An operation's end comes here again, when it is clear whether the capsule is still ours.
    if (!capsule->operation.empty() || capsule->ended() ||
        capsule->record.state() == state::in_doubt) {
      return;
    }
    if (!capsule->exit_pending && !capsule->init_lost) return;
    status = capsule->exit_pending;
  }
  Result<void> done;
  if (status) {
    done = finish_exit(capsule, *status, "");
  } else if (auto again = start_console(capsule, capsule->record.attach_id(), false); !again.ok()) {
    done = finish_exit(capsule, SIGKILL, "its init was killed");
  }
  if (!done.ok()) LOG(error, "end of capsule {}: {}", id, done.error().what());
}

// In an order that loses nothing when we are killed: init keeps status and output until both are
// saved, and only then is it taken down.
Result<void> Host::finish_exit(const HostedPtr& capsule, int wait_status, const std::string& note) {
  node::SavedLog log;
  auto init = capsule::InitClient::connect(capsule::Shell::socket_path(config_.env, capsule->id()));
  if (init.ok()) {
    auto whole = read_log(*init, 0);
    if (whole.ok())
      log = std::move(whole).value();
    else
      LOG(warn, "output of {}: {}", capsule->id(), whole.error().what());
  }
  TRY(store_.save_log(capsule->id(), log));
  TRY(update(capsule, [&](auto& record) {
    record.set_state(state::exited);
    record.set_wait_status(wait_status);
    record.set_note(note);
    record.set_incoming(false);
    record.clear_residual();
    record.set_ended_realtime_us(realtime_us());
    record.set_out_end(log.end());
  }));
  std::shared_ptr<Console> console;
  {
    const std::lock_guard lock(capsule->mutex);
    console.swap(capsule->console);
    capsule->exit_pending.reset();
    capsule->init_lost = false;
  }
  if (console) {
    console->announce_exit(wait_status, note);
    console->stop();
  }
  auto gone = capsule::Shell::destroy(config_.env, capsule->id());
  prune();
  return gone;
}

Result<void> Host::ended(const HostedPtr& capsule, int wait_status, const std::string& note) {
  return finish_exit(capsule, wait_status, note);
}

void Host::prune() {
  std::vector<std::pair<std::int64_t, HostedPtr>> ended;
  for (const auto& capsule : all()) {
    const std::lock_guard lock(capsule->mutex);
    if (capsule->ended()) ended.emplace_back(capsule->record.ended_realtime_us(), capsule);
  }
  if (ended.size() <= ended_kept_max) return;
  std::sort(ended.begin(), ended.end());
  for (std::size_t i = 0; i < ended.size() - ended_kept_max; ++i) {
    if (auto gone = forget(ended[i].second); !gone.ok()) {
      LOG(error, "ended capsule: {}", gone.error().what());
    }
  }
}

Result<void> Host::remove(const HostedPtr& capsule) {
  {
    const std::lock_guard lock(capsule->mutex);
    if (!capsule->ended()) {
      return make_error(Errc::refused, "{} has not ended; kill it first",
                        capsule->record.spec().name());
    }
  }
  TRY(capsule::Shell::destroy(config_.env, capsule->id()));
  return forget(capsule);
}

Result<api::WaitReply> Host::wait(const rpc::Call& call, const HostedPtr& capsule,
                                  std::int64_t timeout_us) {
  timeout_us = std::clamp<std::int64_t>(timeout_us, 0, wait_slice_us_max);
  const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(timeout_us);
  std::unique_lock lock(capsule->mutex);
  // In slices: nothing wakes us when the caller goes.
  while (!capsule->ended() && !capsule->departed() && !call.is_cancelled() &&
         std::chrono::steady_clock::now() < until) {
    capsule->changed.wait_until(
        lock, std::min(until, std::chrono::steady_clock::now() + milliseconds(500)));
  }
  api::WaitReply reply;
  reply.set_exited(capsule->ended());
  reply.set_wait_status(capsule->record.wait_status());
  reply.set_note(capsule->record.note());
  return reply;
}

// ---- Signals ----

Result<void> Host::kill(const HostedPtr& capsule) {
  {
    const std::lock_guard lock(capsule->mutex);
    if (capsule->record.state() == state::in_doubt) {
      return make_error(Errc::in_doubt,
                        "{} is in doubt: its copy on {} may be running; resolve that first",
                        capsule->record.spec().name(), capsule->record.target());
    }
    if (capsule->ended()) return {};
  }
  auto tree = TRY(this->tree(capsule));
  TRY(tree.kill_all());
  return {};
}

// While a migration has the tree frozen, a signal sent here might come after the pending ones were
// read, and would be lost with this copy. Init's relay stands still in that time: wait for its end,
// and if the capsule has moved meanwhile, the caller looks for it again.
Result<void> Host::signal(const rpc::Call& call, const HostedPtr& capsule, int number,
                          bool foreground) {
  if (number < 1 || number > SIGRTMAX) return make_error(Errc::invalid, "signal {}", number);
  const auto until = std::chrono::steady_clock::now() + signal_wait_max;
  const auto to = foreground ? capsule::SignalTo::foreground : capsule::SignalTo::main;
  while (true) {
    {
      std::unique_lock lock(capsule->mutex);
      const std::string& name = capsule->record.spec().name();
      if (capsule->departed()) return make_error(Errc::not_found, "{} has moved", name);
      if (capsule->ended()) return make_error(Errc::refused, "{} has ended", name);
      if (capsule->record.state() == state::in_doubt) {
        return make_error(Errc::in_doubt, "{} is in doubt: {}", name, capsule->record.note());
      }
    }
    auto init =
        capsule::InitClient::connect(capsule::Shell::socket_path(config_.env, capsule->id()));
    auto sent = init.ok() ? init->signal(number, to) : Result<void>(init.error());
    // EAGAIN: the relay stands still.
    if (sent.ok() || (init.ok() && sent.error().sys_errno() != EAGAIN &&
                      sent.error().code() != Errc::peer_lost)) {
      return sent;
    }
    std::unique_lock lock(capsule->mutex);
    if (capsule->operation.empty()) return sent;
    if (call.is_cancelled() || std::chrono::steady_clock::now() > until) {
      return make_error(Errc::timeout, "{} is being {}; the signal was not sent",
                        capsule->record.spec().name(), capsule->operation);
    }
    capsule->changed.wait_for(lock, milliseconds(20));
  }
}

// ---- Streams ----

namespace {

// The last output of an ended capsule, from `from` on, then its status.
Result<void> replay(const node::SavedLog& log, const node::CapsuleRecord& record,
                    const NodeId& node, const api::AttachRequest::Open& open,
                    rpc::AttachChannel& channel) {
  std::uint64_t next = open.resume() ? open.out_seq() : log.end();
  if (log.chunks_size() > 0) next = std::max(next, std::uint64_t{log.chunks(0).from()});
  api::AttachReply reply;
  reply.mutable_opened()->set_node(node.value);
  reply.mutable_opened()->set_out_seq(next);
  reply.mutable_opened()->set_tty(record.spec().tty());
  bool more = channel.write(reply);
  for (const auto& chunk : log.chunks()) {
    const std::uint64_t end = chunk.from() + chunk.data().size();
    if (!more || end <= next) continue;
    auto* output = reply.mutable_output();
    output->set_seq(next);
    output->set_stream(chunk.stream());
    output->set_data(chunk.data().substr(next - chunk.from()));
    next = end;
    more = channel.write(reply);
  }
  reply.mutable_exited()->set_wait_status(record.wait_status());
  reply.mutable_exited()->set_note(record.note());
  if (more) channel.write(reply);
  return {};
}

}  // namespace

Result<void> Host::attach(const rpc::Call& call, const HostedPtr& capsule,
                          const api::AttachRequest::Open& open, rpc::AttachChannel& channel) {
  std::shared_ptr<Console> console;
  node::CapsuleRecord record;
  {
    std::unique_lock lock(capsule->mutex);
    // Between the connection's loss and the capsule's end, start or departure: short.
    capsule->changed.wait_for(lock, seconds(5), [&] {
      return capsule->ended() || capsule->departed() ||
             (capsule->console && !capsule->exit_pending && !capsule->init_lost);
    });
    console = capsule->console;
    record = capsule->record;
    if (capsule->departed()) {
      return make_error(Errc::peer_lost, "{} is moving", record.spec().name());
    }
  }
  if (record.state() == state::exited) {
    const auto log = TRY(store_.load_log(capsule->id()));
    return replay(log, record, config_.env.node, open, channel);
  }
  if (!console)
    return make_error(Errc::peer_lost, "the streams of {} are being set up", open.capsule());
  return console->serve(call, open, channel);
}

Result<void> Host::logs(const rpc::Call& call, const HostedPtr& capsule, bool follow,
                        rpc::Sink<api::LogsChunk>& sink) {
  std::uint64_t from = 0;
  const auto send = [&](std::uint64_t begin, std::uint32_t stream, const std::string& data) {
    if (begin + data.size() <= from) return true;
    const std::uint64_t skip = begin < from ? from - begin : 0;
    from = begin + data.size();
    for (std::size_t at = skip; at < data.size(); at += chunk_bytes_max) {
      api::LogsChunk chunk;
      chunk.set_stream(stream);
      chunk.set_data(data.substr(at, chunk_bytes_max));
      if (!sink.write(chunk)) return false;
    }
    return true;
  };
  while (!call.is_cancelled()) {
    bool ended = false;
    {
      const std::lock_guard lock(capsule->mutex);
      ended = capsule->ended();
      if (capsule->departed()) return {};
    }
    node::SavedLog log;
    if (ended) {
      log = TRY(store_.load_log(capsule->id()));
    } else {
      // A connection each time: init has few to give, and a follower may stay for days.
      auto init =
          capsule::InitClient::connect(capsule::Shell::socket_path(config_.env, capsule->id()));
      if (init.ok() && from < TRY(init->status()).out_end) log = TRY(read_log(*init, from));
      if (!init.ok() && !follow) return std::move(init).error();
    }
    for (const auto& chunk : log.chunks()) {
      if (!send(chunk.from(), chunk.stream(), chunk.data())) return {};
    }
    if (ended || !follow) return {};
    std::unique_lock lock(capsule->mutex);
    capsule->changed.wait_for(lock, milliseconds(200));
  }
  return {};
}

}  // namespace godwit::daemon
