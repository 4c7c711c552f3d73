// stdio's exactness. Where a program must move between two shells, the test plays the program: it
// holds the program's ends of the pipes, as init gives them to a restorer.
#include <fcntl.h>
#include <sys/ioctl.h>
#include <termios.h>

#include <cstring>
#include <memory>
#include <random>

#include "capsule/relay_state.h"
#include "capsule/test_node.h"

namespace godwit::capsule {
namespace {

// Any piece of the stream can be made and checked anywhere.
char byte_at(std::uint64_t number, std::uint64_t seed) {
  std::uint64_t x = (number / 8 + seed) * 0x9e3779b97f4a7c15U;
  x ^= x >> 29;
  return static_cast<char>(x >> (number % 8 * 8));
}
std::string bytes_at(std::uint64_t from, std::size_t count, std::uint64_t seed) {
  std::string out(count, '\0');
  for (std::size_t i = 0; i < count; ++i) out[i] = byte_at(from + i, seed);
  return out;
}
bool matches(std::string_view bytes, std::uint64_t from, std::uint64_t seed) {
  for (std::size_t i = 0; i < bytes.size(); ++i)
    if (bytes[i] != byte_at(from + i, seed)) return false;
  return true;
}

constexpr std::uint64_t in_seed = 11;
constexpr std::uint64_t err_seed = 99;

// One end of the conversation: sends the stream of `in_seed`, keeps to the window, expects it back
// on stdout and the stream of `err_seed` on stderr.
struct Talker {
  std::unique_ptr<InitClient> client;
  std::uint64_t total = 0;
  std::uint64_t sent = 0, acked = 0;
  std::uint64_t out_next = 0, stdout_seen = 0, stderr_seen = 0;
  bool eof_sent = false;
  bool exited = false;
  int status = 0;

  void connect(const std::string& socket) {
    Result<InitClient> made = InitClient::connect(socket);
    ASSERT_OK(made);
    client = std::make_unique<InitClient>(std::move(made).value());
    Result<Attached> attached = client->attach(out_next);
    ASSERT_OK(attached);
    ASSERT_EQ(attached->out_from, out_next);
    ASSERT_LE(attached->stdin_next, std::max(sent, attached->stdin_next));
    sent = attached->stdin_next;
    // As the daemon does: acknowledgements that were on their way to the old connection don't come.
    acked = std::max(acked, attached->stdin_next);
    eof_sent = false;
  }

  void send(std::size_t most) {
    std::uint64_t window = acked + stdin_window_bytes;
    std::uint64_t count = std::min<std::uint64_t>({most, window - sent, total - sent});
    std::string bytes = bytes_at(sent, count, in_seed);
    ASSERT_OK(client->send_stdin(sent, as_bytes(bytes)));
    sent += count;
    if (sent == total && !eof_sent) {
      ASSERT_OK(client->send_stdin_eof(total));
      eof_sent = true;
    }
  }

  // False: nothing was there.
  bool receive(int timeout_ms) {
    Result<std::optional<InitEvent>> event = client->next_event(timeout_ms);
    if (!event.ok()) {
      ADD_FAILURE() << event.error().what();
      return false;
    }
    if (!event->has_value()) return false;
    take(**event);
    return true;
  }

  void take(const InitEvent& event) {
    if (event.type == Message::stdin_ack) {
      ASSERT_LE(event.a, sent);
      acked = std::max(acked, event.a);
    } else if (event.type == Message::stdin_resend) {
      ASSERT_LE(event.a, sent);
      sent = event.a;
      eof_sent = false;
    } else if (event.type == Message::exited) {
      exited = true;
      status = static_cast<int>(event.b);
    } else {
      ASSERT_EQ(event.type, Message::out) << event.payload;
      ASSERT_EQ(event.a, out_next);
      bool is_err = event.b == 2;
      std::uint64_t& seen = is_err ? stderr_seen : stdout_seen;
      ASSERT_TRUE(matches(event.payload, seen, is_err ? err_seed : in_seed)) << "at " << seen;
      seen += event.payload.size();
      out_next += event.payload.size();
    }
  }
};

// Copies stdin to stdout and counts on stderr, a random piece at a time, never blocking.
struct Program {
  std::vector<UniqueFd> fds;
  std::uint64_t read = 0, written = 0, err_written = 0;
  bool eof = false;

  void take_ends(Shell& shell) {
    Result<Stdio> stdio = shell.init().stdio();
    ASSERT_OK(stdio);
    ASSERT_EQ(stdio->fds.size(), 3U);
    fds = std::move(stdio->fds);
    for (const UniqueFd& fd : fds) ASSERT_EQ(::fcntl(fd.get(), F_SETFL, O_NONBLOCK), 0);
  }

  void step(std::size_t most) {
    std::string buffer(most, '\0');
    // It remembers what it read only by number: what it writes is made anew.
    ssize_t n = ::read(fds[0].get(), buffer.data(), most);
    if (n > 0) {
      buffer.resize(static_cast<std::size_t>(n));
      ASSERT_TRUE(matches(buffer, read, in_seed)) << "stdin at " << read;
      read += static_cast<std::uint64_t>(n);
    }
    if (n == 0) eof = true;
    std::string out = bytes_at(written, std::min<std::uint64_t>(most, read - written), in_seed);
    n = ::write(fds[1].get(), out.data(), out.size());
    if (n > 0) written += static_cast<std::uint64_t>(n);
    std::string err = bytes_at(err_written, most % 100, err_seed);
    n = ::write(fds[2].get(), err.data(), err.size());
    if (n > 0) err_written += static_cast<std::uint64_t>(n);
  }
};

class RelayTest : public TestNode {
 protected:
  std::string socket_of(const Shell& shell) { return Shell::socket_path(env_, shell.id()); }

  // The state of stdio before anything was said.
  static std::string first_state() {
    RelayHead head{};
    head.magic = relay_magic;
    head.version = relay_version;
    return std::string(reinterpret_cast<const char*>(&head), sizeof(head));
  }

  static std::size_t up_to(std::mt19937& random, std::size_t most) {
    // Small ones are as likely as large ones.
    std::size_t limit = std::size_t{1} << (random() % 18);
    return 1 + random() % std::min(limit, most);
  }
};

TEST_F(RelayTest, MovesMidStreamLoseDoubleAndReorderNothing) {
  int moves = 0, rollbacks = 0, reconnects = 0;  // How many depends on how fast the pipes are.
  for (unsigned seed : {1U, 2U, 3U}) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937 random(seed);
    auto shell = std::make_unique<Shell>(make_shell(spec("c1")));
    ASSERT_OK(shell->init().relay_put(first_state()));
    ASSERT_OK(shell->init().relay_go());
    Program program;
    program.take_ends(*shell);
    Talker talker;
    talker.total = 8 << 20;
    talker.connect(socket_of(*shell));
    std::uint64_t next_change = 0;
    while (talker.stdout_seen < talker.total || !program.eof) {
      ASSERT_FALSE(HasFatalFailure());
      if (random() % 4 == 0) talker.send(up_to(random, 200'000));
      if (random() % 4 == 0) program.step(up_to(random, 100'000));
      if (random() % 4 == 0) talker.receive(0);
      if (random() % 4 == 0) ASSERT_OK(talker.client->ack_output(talker.out_next));
      if (talker.stdout_seen < next_change) continue;
      next_change = talker.stdout_seen + up_to(random, 131'072) * 32;
      unsigned change = random() % 3;
      if (change == 0) {
        talker.connect(socket_of(*shell));
        ++reconnects;
        continue;
      }
      // The program stands still from here: it is us.
      Result<std::string> state = shell->init().relay_get();
      ASSERT_OK(state);
      if (random() % 2 == 0) talker.send(1000);  // Comes while the relay stands.
      if (change == 1) {
        // Nothing was changed by asking.
        Result<std::string> again = shell->init().relay_get();
        ASSERT_OK(again);
        ASSERT_OK(shell->init().relay_go());
        ++rollbacks;
        continue;
      }
      auto target = std::make_unique<Shell>(make_shell(spec("c1")));
      ASSERT_OK(target->init().relay_put(*state));
      // What was taken out of the pipes is in the state, what wasn't is in the target's pipe.
      ASSERT_OK(shell->destroy());
      shell = std::move(target);
      program.take_ends(*shell);
      ASSERT_OK(shell->init().relay_go());
      talker.connect(socket_of(*shell));
      ++moves;
    }
    EXPECT_EQ(program.read, talker.total);
    // All of stderr comes too.
    ASSERT_TRUE(eventually([&] {
      while (talker.receive(0)) {
      }
      return talker.client->ack_output(talker.out_next).ok() &&
             talker.stderr_seen == program.err_written;
    }));
    ASSERT_OK(shell->destroy());
  }
  EXPECT_GT(moves, 2);
  EXPECT_GT(rollbacks, 2);
  EXPECT_GT(reconnects, 2);
}

TEST_F(RelayTest, FrozenAndRolledBackProgramGetsEveryByteOnce) {
  Shell shell = make_shell(spec("c1"));
  Talker talker;
  talker.total = 20 << 20;
  talker.connect(socket_of(shell));
  SpawnRequest request;
  request.argv = {"cat"};
  request.env = {"PATH=/usr/bin:/bin"};
  ASSERT_OK(talker.client->spawn(request));
  std::mt19937 random(7);
  int rollbacks = 0;
  std::uint64_t next_change = 100'000;
  while (!talker.exited) {
    ASSERT_FALSE(HasFatalFailure());
    talker.send(up_to(random, 200'000));
    while (talker.receive(0) && !HasFatalFailure()) {
    }
    ASSERT_OK(talker.client->ack_output(talker.out_next));
    if (talker.stdout_seen < next_change) continue;
    next_change += 300'000;
    ASSERT_OK(shell.tree().freeze());
    Result<std::string> state = shell.init().relay_get();
    ASSERT_OK(state);
    RelayHead head;
    std::memcpy(&head, state->data(), sizeof(head));
    // Output so far is a prefix of the input so far; the rest is in the program or its pipe.
    EXPECT_LE(head.out_end + head.stdin_bytes, head.stdin_next);
    ASSERT_OK(shell.init().relay_go());
    ASSERT_OK(shell.tree().thaw());
    ++rollbacks;
  }
  EXPECT_EQ(talker.status, 0);
  EXPECT_EQ(talker.stdout_seen, talker.total);
  EXPECT_GT(rollbacks, 50);
  ASSERT_OK(shell.destroy());
}

TEST_F(RelayTest, UnacknowledgedOutputStopsTheProgramNotInit) {
  Shell shell = make_shell(spec("c1"));
  SpawnRequest request;
  request.argv = {"sh", "-c", "head -c 5000000 /dev/zero; echo end >&2"};
  request.env = {"PATH=/usr/bin:/bin"};
  ASSERT_OK(shell.init().spawn(request));
  ASSERT_TRUE(
      eventually([&] { return shell.init().status()->out_end == unacked_output_bytes_max; }));
  // The program is stuck in write(2) with a full pipe, init answers.
  ASSERT_TRUE(eventually([&] {
    std::string waits;
    Result<std::vector<pid_t>> tree = shell.tree().pids();
    for (pid_t pid : *tree) {
      Result<std::string> wchan = read_file(fmt::format("/proc/{}/syscall", pid));
      if (wchan.ok() && wchan->starts_with("1 0x1 ")) return true;  // write(1, ...)
    }
    return false;
  }));
  EXPECT_EQ(shell.init().status()->out_end, unacked_output_bytes_max);
  ASSERT_OK(shell.init().attach());
  std::string out, err;
  EXPECT_EQ(collect(shell.init(), out, err), 0);
  EXPECT_EQ(out, std::string(5'000'000, '\0'));
  EXPECT_EQ(err, "end\n");
  // The log keeps the end of it.
  Result<Status> status = shell.init().status();
  ASSERT_OK(status);
  EXPECT_EQ(status->out_end, 5'000'004U);
  EXPECT_LE(status->out_end - status->out_begin, log_bytes + payload_bytes_max);
  EXPECT_EQ(shell.init().read_log(5'000'000)->bytes, "end\n");
  EXPECT_EQ(shell.init().read_log(5'000'000)->stream, 2);
  ASSERT_OK(shell.destroy());
}

TEST_F(RelayTest, StateCarriesTheExitAndTheEndOfInput) {
  Shell shell = make_shell(spec("c1"));
  ASSERT_OK(shell.init().attach());
  ASSERT_OK(shell.init().send_stdin(0, as_bytes("abc")));
  SpawnRequest request;
  request.argv = {"sh", "-c", "cat >/dev/null; echo bye; exit 9"};
  request.env = {"PATH=/usr/bin:/bin"};
  ASSERT_OK(shell.init().spawn(request));
  // Sent before there was a pipe, so dropped and asked for again.
  bool resend = false;
  while (!resend) {
    Result<std::optional<InitEvent>> event = shell.init().next_event(60'000);
    ASSERT_OK(event);
    ASSERT_TRUE(event->has_value());
    resend = (*event)->type == Message::stdin_resend;
    if (resend) {
      EXPECT_EQ((*event)->a, 0U);
    }
  }
  ASSERT_OK(shell.init().send_stdin(0, as_bytes("abc")));
  ASSERT_OK(shell.init().send_stdin_eof(3));
  ASSERT_TRUE(eventually([&] { return shell.init().status()->exited == 1; }));
  Result<std::string> state = shell.init().relay_get();
  ASSERT_OK(state);
  Shell target = make_shell(spec("c1"));
  ASSERT_OK(target.init().relay_put(*state));
  EXPECT_FALSE(target.init().relay_put(*state).ok());  // Once only.
  ASSERT_OK(target.init().relay_go());
  ASSERT_OK(target.init().attach());
  std::string out, err;
  int status = collect(target.init(), out, err);
  EXPECT_EQ(WEXITSTATUS(status), 9);
  EXPECT_EQ(out, "bye\n");
  Result<Status> told = target.init().status();
  ASSERT_OK(told);
  EXPECT_EQ(told->stdin_next, 3U);
  ASSERT_OK(shell.destroy());
  ASSERT_OK(target.destroy());
}

TEST_F(RelayTest, BrokenStatesAreRefused) {
  Shell shell = make_shell(spec("c1"));
  std::string good = first_state();
  EXPECT_FALSE(shell.init().relay_put("").ok());
  EXPECT_FALSE(shell.init().relay_put(good.substr(0, 20)).ok());
  std::string bad = good;
  bad[4] = 9;  // Of a later version.
  EXPECT_FALSE(shell.init().relay_put(bad).ok());
  RelayHead head;
  std::memcpy(&head, good.data(), sizeof(head));
  head.stdin_bytes = 1;
  EXPECT_FALSE(
      shell.init().relay_put(std::string(reinterpret_cast<char*>(&head), sizeof(head))).ok());
  EXPECT_TRUE(shell.init().status().ok());
  ASSERT_OK(shell.destroy());
}

TEST_F(RelayTest, MoreClientsThanPlacesAreTurnedAwayWithoutHarm) {
  Shell shell = make_shell(spec("c1"));
  std::vector<InitClient> others;
  int served = 0;
  for (std::size_t i = 0; i < 2 * clients_max; ++i) {
    Result<InitClient> other = InitClient::connect(socket_of(shell));
    ASSERT_OK(other);
    served += other->status().ok() ? 1 : 0;
    others.push_back(std::move(other).value());
  }
  EXPECT_EQ(served, static_cast<int>(clients_max) - 1);
  EXPECT_TRUE(shell.init().status().ok());
  others.clear();
  EXPECT_TRUE(eventually([&] { return shell.init().status()->clients == 1; }));
  ASSERT_OK(shell.destroy());
}

// A shell whose stdio is a terminal without program, with the settings that every new terminal has.
class TerminalTest : public RelayTest {
 protected:
  std::string first_terminal_state() {
    Shell shell = make_shell(spec("c1"));
    SpawnRequest request;
    request.argv = {"sh", "-c", "kill -STOP $$"};
    request.tty = true;
    request.env = {"PATH=/usr/bin:/bin"};
    EXPECT_TRUE(shell.init().spawn(request).ok());
    std::string state = std::move(shell.init().relay_get()).value();
    RelayHead head;
    std::memcpy(&head, state.data(), sizeof(head));
    EXPECT_GT(head.session, 0);
    head.main_pid = 0;
    std::memcpy(state.data(), &head, sizeof(head));
    EXPECT_TRUE(shell.destroy().ok());
    return state;
  }

  void start() {
    shell_ = std::make_unique<Shell>(make_shell(spec("c1")));
    ASSERT_OK(shell_->init().relay_put(first_terminal_state()));
    ASSERT_OK(shell_->init().relay_go());
    adopt();
  }
  void adopt() {
    Result<Stdio> stdio = shell_->init().stdio();
    ASSERT_OK(stdio);
    ASSERT_EQ(stdio->fds.size(), 1U);
    slave_ = std::move(stdio->fds[0]);
    ASSERT_EQ(::fcntl(slave_.get(), F_SETFL, O_NONBLOCK | O_RDWR), 0);
    Result<Attached> attached = shell_->init().attach(out_next_);
    ASSERT_OK(attached);
    in_next_ = attached->stdin_next;
  }
  void move(bool rollback) {
    Result<std::string> state = shell_->init().relay_get();
    ASSERT_OK(state);
    if (rollback) {
      ASSERT_OK(shell_->init().relay_go());
      return;
    }
    auto target = std::make_unique<Shell>(make_shell(spec("c1")));
    ASSERT_OK(target->init().relay_put(*state));
    // Whatever this shell still sends was in the state too.
    slave_.reset();
    ASSERT_OK(shell_->destroy());
    shell_ = std::move(target);
    ASSERT_OK(shell_->init().relay_go());
    adopt();
  }
  void type(const std::string& text) {
    ASSERT_OK(shell_->init().send_stdin(in_next_, as_bytes(text)));
    in_next_ += text.size();
    // With the terminal before we go on.
    ASSERT_TRUE(eventually([&] {
      take_events();
      return in_acked_ >= in_next_;
    }));
  }
  void take_events() {
    while (true) {
      Result<std::optional<InitEvent>> event = shell_->init().next_event(0);
      ASSERT_OK(event);
      if (!event->has_value()) return;
      if ((*event)->type == Message::stdin_ack) in_acked_ = (*event)->a;
      if ((*event)->type != Message::out) continue;
      ASSERT_EQ((*event)->a, out_next_);
      out_ += (*event)->payload;
      out_next_ += (*event)->payload.size();
      ASSERT_OK(shell_->init().ack_output(out_next_));
    }
  }
  // What one read(2) gives; "-" if nothing.
  std::string read_once() {
    char buffer[4096];
    ssize_t n = ::read(slave_.get(), buffer, sizeof(buffer));
    return n < 0 ? "-" : std::string(buffer, static_cast<std::size_t>(n));
  }

  std::unique_ptr<Shell> shell_;
  UniqueFd slave_;
  std::uint64_t in_next_ = 0, in_acked_ = 0, out_next_ = 0;
  std::string out_;
};

TEST_F(TerminalTest, ProgramHasAControllingTerminalOfTheAskedSize) {
  Shell shell = make_shell(spec("c1"));
  SpawnRequest request;
  request.argv = {"sh", "-c", "tty; stty size; stat -c %u $(tty); echo err >&2; echo x >/dev/tty"};
  request.tty = true;
  request.uid = 1234;
  request.gid = 1234;
  request.rows = 31;
  request.columns = 97;
  Ran ran = run_in(shell, request);
  EXPECT_EQ(ran.out, "/dev/pts/0\r\n31 97\r\n1234\r\nerr\r\nx\r\n");
  EXPECT_EQ(ran.status, 0);
  ASSERT_OK(shell.destroy());
}

TEST_F(TerminalTest, InterruptCharacterAndHangupWork) {
  Shell shell = make_shell(spec("c1"));
  ASSERT_OK(shell.init().attach());
  SpawnRequest request;
  request.argv = {"sh", "-c", "trap 'echo int; exit 4' INT; echo ready; while :; do :; done"};
  request.tty = true;
  request.env = {"PATH=/usr/bin:/bin"};
  ASSERT_OK(shell.init().spawn(request));
  Result<std::optional<InitEvent>> ready = shell.init().next_event(60'000);
  ASSERT_OK(ready);
  ASSERT_TRUE(ready->has_value());
  ASSERT_OK(shell.init().send_stdin(0, as_bytes("\x03")));
  std::string out, err;
  EXPECT_EQ(WEXITSTATUS(collect(shell.init(), out, err)), 4);
  EXPECT_EQ(out, "^Cint\r\n");
  ASSERT_OK(shell.destroy());
}

TEST_F(TerminalTest, TypedLinesMoveUnreadAndUnfinished) {
  for (bool rollback : {false, true}) {
    SCOPED_TRACE(rollback ? "rollback" : "move");
    out_.clear();
    in_acked_ = out_next_ = 0;
    start();
    if (HasFatalFailure()) return;
    type("one\r");
    type("two\x04");      // Ended by EOF: without a line feed.
    type("\x04");         // End of file.
    type("th\x16\x04x");  // A literal ^D, in a line that isn't finished.
    type("yz");
    move(rollback);
    if (HasFatalFailure()) return;
    EXPECT_EQ(read_once(), "one\n");
    EXPECT_EQ(read_once(), "two");
    EXPECT_EQ(read_once(), "");
    EXPECT_EQ(read_once(), "-");
    type("\x7f");  // Erases the z.
    move(rollback);
    if (HasFatalFailure()) return;
    type("!\r");
    ASSERT_TRUE(eventually([&] {
      int bytes = 0;
      return ::ioctl(slave_.get(), FIONREAD, &bytes) == 0 && bytes > 0;
    }));
    EXPECT_EQ(read_once(), "th\x04xy!\n");
    EXPECT_EQ(read_once(), "-");
    // Echoed once, when it was typed.
    const std::string echo = "one\r\ntwoth^\b^Dxyz\b \b!\r\n";
    EXPECT_TRUE(eventually([&] {
      take_events();
      return out_.size() >= echo.size();
    }));
    EXPECT_EQ(out_, echo);
    ASSERT_OK(shell_->destroy());
  }
}

TEST_F(TerminalTest, SettingsMove) {
  start();
  termios settings;
  ASSERT_EQ(::tcgetattr(slave_.get(), &settings), 0);
  settings.c_lflag &= ~static_cast<tcflag_t>(ECHO | ICANON);
  settings.c_cc[VINTR] = 7;
  settings.c_cc[VMIN] = 3;
  ASSERT_EQ(::tcsetattr(slave_.get(), TCSANOW, &settings), 0);
  ASSERT_OK(shell_->init().set_winsize(50, 60));
  move(false);
  termios moved;
  winsize size;
  ASSERT_EQ(::tcgetattr(slave_.get(), &moved), 0);
  ASSERT_EQ(::ioctl(slave_.get(), TIOCGWINSZ, &size), 0);
  EXPECT_EQ(moved.c_lflag, settings.c_lflag);
  EXPECT_EQ(moved.c_iflag, settings.c_iflag);
  EXPECT_EQ(std::memcmp(moved.c_cc, settings.c_cc, sizeof(moved.c_cc)), 0);
  EXPECT_EQ(size.ws_row, 50);
  EXPECT_EQ(size.ws_col, 60);
  ASSERT_OK(shell_->destroy());
}

// Raw mode, every byte value, both directions, random moments.
TEST_F(TerminalTest, RawStreamIsExactAcrossMoves) {
  start();
  termios settings;
  ASSERT_EQ(::tcgetattr(slave_.get(), &settings), 0);
  ::cfmakeraw(&settings);
  ASSERT_EQ(::tcsetattr(slave_.get(), TCSANOW, &settings), 0);
  std::mt19937 random(5);
  constexpr std::uint64_t total = 300'000;
  std::uint64_t read = 0, written = 0, next_change = 0;
  int changes = 0;
  while (out_next_ < total) {
    ASSERT_FALSE(HasFatalFailure());
    if (random() % 4 == 0 && in_next_ < total && in_next_ < in_acked_ + stdin_window_bytes) {
      std::size_t count = std::min<std::uint64_t>(up_to(random, 20'000), total - in_next_);
      ASSERT_OK(shell_->init().send_stdin(in_next_, as_bytes(bytes_at(in_next_, count, in_seed))));
      in_next_ += count;
    }
    if (random() % 4 == 0) {
      char buffer[4096];
      ssize_t n = ::read(slave_.get(), buffer, 1 + random() % sizeof(buffer));
      if (n > 0) {
        ASSERT_TRUE(matches({buffer, static_cast<std::size_t>(n)}, read, in_seed)) << "at " << read;
        read += static_cast<std::uint64_t>(n);
      }
      std::string out = bytes_at(written, std::min<std::uint64_t>(read - written, 3000), in_seed);
      n = ::write(slave_.get(), out.data(), out.size());
      if (n > 0) written += static_cast<std::uint64_t>(n);
    }
    if (random() % 4 == 0) take_events();
    if (out_next_ >= next_change) {
      next_change = out_next_ + 1 + random() % 30'000;
      move(random() % 2 == 0);
      ++changes;
    }
  }
  EXPECT_TRUE(matches(out_, 0, in_seed));
  EXPECT_EQ(out_.size(), total);
  EXPECT_GT(changes, 5);
  ASSERT_OK(shell_->destroy());
}

}  // namespace
}  // namespace godwit::capsule
