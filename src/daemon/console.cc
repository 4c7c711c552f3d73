#include "daemon/console.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <future>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "base/thread_name.h"
#include "rpc/attach_reader.h"

namespace godwit::daemon {
namespace {

constexpr std::uint64_t anybody = ~std::uint64_t{0};

std::int64_t grace_us() {
  return std::chrono::duration_cast<std::chrono::microseconds>(Console::grace).count();
}

api::AttachReply closed_reply(Errc code, const std::string& reason, bool again) {
  api::AttachReply reply;
  reply.mutable_closed()->set_code(static_cast<std::uint32_t>(code));
  reply.mutable_closed()->set_reason(reason);
  reply.mutable_closed()->set_again(again);
  return reply;
}

}  // namespace

// What waits to be written to one client. Bounded by init: it never has more than 1 MiB out
// unacknowledged, and one replay of as much.
struct Console::Client {
  std::uint64_t id = 0;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<api::AttachReply> replies;
  bool last_queued = false;  // Exited or Closed is in the queue, or was.
  bool gone = false;         // Its side has ended.
  bool detached = false;     // It said so.
  bool open = false;         // Output may be queued: its position is known.
  std::uint64_t out_next = 0;
  std::uint64_t stdin_acked = 0;

  void push(api::AttachReply reply) {
    const std::lock_guard lock(mutex);
    if (last_queued) return;
    last_queued = reply.has_exited() || reply.has_closed();
    replies.push_back(std::move(reply));
    changed.notify_all();
  }
};

Result<std::shared_ptr<Console>> Console::start(Setup setup, Hooks hooks) {
  auto init = TRY(capsule::InitClient::connect(setup.init_socket));
  UniqueFd wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake.valid()) return os_error("eventfd");
  const auto attached = TRY(init.attach());
  std::shared_ptr<Console> console(
      new Console(std::move(setup), std::move(hooks), std::move(init), std::move(wake)));
  console->out_seen_ = attached.out_from;
  console->out_acked_ = attached.out_from;
  console->thread_ = std::thread([raw = console.get()] {
    name_thread("console");
    raw->loop();
  });
  return console;
}

Console::Console(Setup setup, Hooks hooks, capsule::InitClient init, UniqueFd wake)
    : setup_(std::move(setup)),
      hooks_(std::move(hooks)),
      init_(std::move(init)),
      wake_(std::move(wake)),
      expected_(setup_.keep_for_anybody ? anybody : setup_.expected),
      keep_until_us_(expected_ != 0 ? monotonic_us() + grace_us() : 0) {}

Console::~Console() { stop(); }

void Console::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake();
  if (thread_.joinable()) thread_.join();
}

void Console::wake() {
  const std::uint64_t one = 1;
  // EAGAIN: the counter is full, so the thread will wake anyway.
  if (::write(wake_.get(), &one, sizeof one) < 0 && errno != EAGAIN) {
    LOG(error, "{}", os_error("write(eventfd)").what());
  }
}

void Console::post(Command command) {
  {
    const std::lock_guard lock(mutex_);
    if (dead_) return;
    commands_.push_back(std::move(command));
  }
  wake();
}

Result<void> Console::run_command(Command command) {
  auto done = std::make_shared<std::promise<Result<void>>>();
  auto result = done->get_future();
  {
    const std::lock_guard lock(mutex_);
    if (dead_) return make_error(Errc::peer_lost, "the capsule's init is gone");
    commands_.push_back([done, command = std::move(command)](capsule::InitClient& init) {
      auto outcome = command(init);
      const bool lost = !outcome.ok() && outcome.error().code() == Errc::peer_lost;
      Error copy(Errc::peer_lost, lost ? outcome.error().what() : "");
      done->set_value(std::move(outcome));
      return lost ? Result<void>(std::move(copy)) : Result<void>();
    });
  }
  wake();
  try {
    return result.get();
  } catch (const std::future_error&) {  // The command was dropped: the thread has ended.
    return make_error(Errc::peer_lost, "the capsule's init is gone");
  }
}

// ---- The console's thread ----

void Console::loop() {
  Result<void> result;
  while (result.ok()) {
    {
      const std::lock_guard lock(mutex_);
      if (stop_) break;
    }
    result = turn();
  }
  std::deque<Command> dropped;
  bool stopped = false;
  {
    const std::lock_guard lock(mutex_);
    dead_ = true;
    stopped = stop_;
    dropped.swap(commands_);
  }
  if (!result.ok() && !stopped) {
    LOG(info, "console of {}: {}", setup_.init_socket, result.error().what());
    hooks_.lost();
  }
}

int Console::poll_timeout_ms() {
  const std::lock_guard lock(mutex_);
  if (client_ || expected_ == 0) return -1;
  const std::int64_t left_us = keep_until_us_ - monotonic_us();
  return left_us <= 0 ? 0 : static_cast<int>(left_us / 1000 + 1);
}

Result<void> Console::turn() {
  pollfd polls[] = {{init_.fd(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
  if (poll(polls, 2, poll_timeout_ms()) < 0 && errno != EINTR) return os_error("poll");
  std::uint64_t count = 0;
  if (::read(wake_.get(), &count, sizeof count) < 0 && errno != EAGAIN) return os_error("eventfd");

  std::deque<Command> commands;
  {
    const std::lock_guard lock(mutex_);
    commands.swap(commands_);
  }
  for (auto& command : commands) {
    auto done = command(init_);
    if (done.ok()) continue;
    if (done.error().code() == Errc::peer_lost) return done;
    LOG(warn, "console of {}: {}", setup_.init_socket, done.error().what());
  }
  while (auto event = TRY(init_.next_event(0))) on_event(*event);
  return acknowledge_unread();
}

// On behalf of a client that doesn't exist.
Result<void> Console::acknowledge_unread() {
  bool given_up = false;
  {
    const std::lock_guard lock(mutex_);
    if (client_) return {};
    if (expected_ != 0) {
      if (monotonic_us() < keep_until_us_) return {};
      expected_ = 0;
      given_up = true;
    }
  }
  if (given_up) hooks_.attached(0);
  if (out_acked_ >= out_seen_) return {};
  out_acked_ = out_seen_;
  return init_.ack_output(out_seen_);
}

void Console::on_event(const capsule::InitEvent& event) {
  std::shared_ptr<Client> client;
  {
    const std::lock_guard lock(mutex_);
    client = client_;
  }
  api::AttachReply reply;
  switch (event.type) {
    case capsule::Message::out: {
      const std::uint64_t end = event.a + event.payload.size();
      out_seen_ = std::max(out_seen_, end);
      if (!client || !client->open) return;
      // Only what continues: bytes before are known, and after `attach` moved back, events that
      // were on their way come first and will come again.
      if (event.a > client->out_next || end <= client->out_next) return;
      auto* output = reply.mutable_output();
      output->set_seq(client->out_next);
      output->set_stream(static_cast<std::uint32_t>(event.b));
      output->set_data(event.payload.substr(client->out_next - event.a));
      client->out_next = end;
      client->push(std::move(reply));
      return;
    }
    case capsule::Message::stdin_ack:
      if (!client) return;
      {
        const std::lock_guard lock(client->mutex);
        client->stdin_acked = event.a;
      }
      reply.set_stdin_ack(event.a);
      client->push(std::move(reply));
      return;
    case capsule::Message::stdin_resend:
      if (!client) return;
      reply.set_stdin_resend(event.a);
      client->push(std::move(reply));
      return;
    case capsule::Message::exited:
      hooks_.exited(static_cast<int>(event.b));
      return;
    case capsule::Message::detached:
      LOG(warn, "{}: somebody else attached to init", setup_.init_socket);
      return;
    default:
      return;
  }
}

// ---- Clients ----

Result<std::shared_ptr<Console::Client>> Console::admit(const api::AttachRequest::Open& open) {
  auto client = std::make_shared<Client>();
  client->id = open.attach_id();
  std::shared_ptr<Client> before;
  {
    const std::lock_guard lock(mutex_);
    if (dead_) return make_error(Errc::peer_lost, "the capsule is not here (anymore)");
    const std::uint64_t holder = client_ ? client_->id : expected_;
    if (holder != 0 && holder != anybody && holder != open.attach_id() && !open.take_over()) {
      return make_error(Errc::refused, "another client is attached (take over with --take-over)");
    }
    before = client_;
    client_ = client;
    expected_ = open.attach_id();
  }
  if (before) {
    const bool same = before->id == open.attach_id();
    before->push(closed_reply(same ? Errc::cancelled : Errc::refused,
                              "another client has taken over", same));
  }
  hooks_.attached(open.attach_id());
  return client;
}

namespace {

// A client whose own terminal was never told its size says 0: the program keeps the one it has.
Result<void> set_window(capsule::InitClient& init, const api::WindowSize& window) {
  if (window.rows() == 0 || window.columns() == 0) return {};
  return init.set_winsize(static_cast<std::uint16_t>(window.rows()),
                          static_cast<std::uint16_t>(window.columns()));
}

}  // namespace

// Makes init send from where the client is, and tells the client where that is.
Result<void> Console::open_stream(Client& client, const api::AttachRequest::Open& open) {
  return run_command([&, this](capsule::InitClient& init) -> Result<void> {
    const auto attached = TRY(init.attach(open.resume() ? open.out_seq() : capsule::no_value));
    if (setup_.tty && open.has_window()) TRY(set_window(init, open.window()));
    client.out_next = attached.out_from;
    client.stdin_acked = attached.stdin_next;
    client.open = true;
    api::AttachReply reply;
    auto* opened = reply.mutable_opened();
    opened->set_node(setup_.node.value);
    opened->set_stdin_seq(attached.stdin_next);
    opened->set_out_seq(attached.out_from);
    opened->set_tty(setup_.tty);
    client.push(std::move(reply));
    return {};
  });
}

bool Console::on_request(Client& client, const api::AttachRequest& request) {
  switch (request.request_case()) {
    case api::AttachRequest::kStdin: {
      const auto& in = request.stdin();
      {
        const std::lock_guard lock(client.mutex);
        if (in.seq() + in.data().size() > client.stdin_acked + capsule::stdin_window_bytes) {
          LOG(warn, "{}: a client sends more input than it may", setup_.init_socket);
          return false;
        }
      }
      post([in](capsule::InitClient& init) -> Result<void> {
        if (!in.data().empty()) TRY(init.send_stdin(in.seq(), as_bytes(in.data())));
        if (in.eof()) TRY(init.send_stdin_eof(in.seq() + in.data().size()));
        return {};
      });
      return true;
    }
    case api::AttachRequest::kOutAck:
      post([seq = request.out_ack()](capsule::InitClient& init) { return init.ack_output(seq); });
      return true;
    case api::AttachRequest::kWindow:
      post([window = request.window()](capsule::InitClient& init) {
        return set_window(init, window);
      });
      return true;
    case api::AttachRequest::kDetach:
      client.detached = true;
      return false;
    default:
      return true;
  }
}

Result<void> Console::serve(const rpc::Call& call, const api::AttachRequest::Open& open,
                            rpc::AttachChannel& channel) {
  if (open.attach_id() == 0 || open.attach_id() == anybody) {
    return make_error(Errc::invalid, "attach: attach_id must be a random number");
  }
  auto client = TRY(admit(open));
  if (auto opened = open_stream(*client, open); !opened.ok()) {
    leave(client, false);
    return opened;
  }
  {
    rpc::AttachReader reader(
        channel, [&](const api::AttachRequest& request) { return on_request(*client, request); },
        [&] {
          const std::lock_guard lock(client->mutex);
          client->gone = true;
          client->changed.notify_all();
        });
    std::unique_lock lock(client->mutex);
    bool more = true;
    while (more) {
      client->changed.wait(lock, [&] { return client->gone || !client->replies.empty(); });
      if (client->gone) break;
      const api::AttachReply reply = std::move(client->replies.front());
      client->replies.pop_front();
      lock.unlock();
      more = channel.write(reply) && !reply.has_exited() && !reply.has_closed();
      lock.lock();
    }
  }
  // A local client whose connection ended is dead; one of another node may only have lost that
  // node.
  leave(client, client->detached || (call.is_cancelled() && !call.forwarded));
  return {};
}

void Console::leave(const std::shared_ptr<Client>& client, bool for_good) {
  {
    const std::lock_guard lock(mutex_);
    if (client_ != client) return;  // Somebody took over.
    client_ = nullptr;
    expected_ = for_good ? 0 : client->id;
    keep_until_us_ = monotonic_us() + grace_us();
  }
  if (for_good) hooks_.attached(0);
  wake();
}

void Console::close_stdin() {
  post([](capsule::InitClient& init) -> Result<void> {
    const auto status = TRY(init.status());
    return init.send_stdin_eof(status.stdin_next);
  });
}

void Console::announce_exit(int wait_status, const std::string& note) {
  std::shared_ptr<Client> client;
  {
    const std::lock_guard lock(mutex_);
    client = client_;
  }
  if (!client) return;
  api::AttachReply reply;
  reply.mutable_exited()->set_wait_status(wait_status);
  reply.mutable_exited()->set_note(note);
  client->push(std::move(reply));
}

void Console::close(const std::string& reason) {
  std::shared_ptr<Client> client;
  {
    const std::lock_guard lock(mutex_);
    client = client_;
  }
  if (client) client->push(closed_reply(Errc::peer_lost, reason, true));
}

}  // namespace godwit::daemon
