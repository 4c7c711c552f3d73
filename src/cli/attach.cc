#include "cli/attach.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/io.h"
#include "base/unique_fd.h"

namespace godwit::cli {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr std::size_t stdin_read_bytes = 32 * 1024;
constexpr std::size_t stdin_pending_bytes_max = 512 * 1024;  // Below the window of godwit-init.
constexpr char detach_first = 0x10;                          // ^P
constexpr char detach_second = 0x11;                         // ^Q

// What a program would get from a terminal or a shell; the rest is for us (SIGTSTP, SIGCHLD...).
constexpr int passed_signals[] = {SIGINT,  SIGTERM, SIGHUP,  SIGQUIT, SIGUSR1,
                                  SIGUSR2, SIGALRM, SIGCONT, SIGWINCH};

sigset_t passed_set() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : passed_signals) sigaddset(&set, signal);
  return set;
}

// Puts the terminal into raw mode and back.
class RawTerminal {
 public:
  explicit RawTerminal(bool wanted) {
    if (!wanted || tcgetattr(STDIN_FILENO, &before_) != 0) return;
    termios raw = before_;
    cfmakeraw(&raw);
    active_ = tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
  }
  ~RawTerminal() {
    if (active_) tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  }
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;

 private:
  termios before_{};
  bool active_ = false;
};

class Session {
 public:
  Session(rpc::ApiClient& client, const AttachOptions& options)
      : client_(client), options_(options), resume_(options.from_start) {}

  Result<AttachEnd> run() {
    stop_.reset(eventfd(0, EFD_CLOEXEC));
    const sigset_t set = passed_set();
    signals_.reset(signalfd(-1, &set, SFD_CLOEXEC));
    if (!stop_.valid() || !signals_.valid()) return os_error("eventfd, signalfd");
    const RawTerminal raw(options_.tty);
    std::thread input([this] { read_input(); });
    auto end = follow();
    const std::uint64_t one = 1;
    auto woken = write_full(stop_.get(), std::as_bytes(std::span(&one, 1)));
    input.join();
    if (!woken.ok()) return std::move(woken).error();
    return end;
  }

 private:
  // Connection after connection, until the program's end.
  Result<AttachEnd> follow() {
    auto give_up_at = steady_clock::now() + seconds(reconnect_s_max);
    milliseconds pause{0};
    while (true) {
      connected_ = false;
      auto ended = converse();
      if (detached_) return AttachEnd{true, 0, ""};
      if (ended.ok()) {
        if (*ended) return end_;
      } else if (!worth_retrying(ended.error())) {
        return std::move(ended).error();
      }
      if (connected_) {
        give_up_at = steady_clock::now() + seconds(reconnect_s_max);
        pause = milliseconds(0);
      } else if (steady_clock::now() > give_up_at) {
        return make_error(Errc::peer_lost,
                          "no contact for {} s; the capsule runs on: godwit attach {}",
                          reconnect_s_max, options_.capsule);
      }
      std::this_thread::sleep_for(pause);
      pause = std::min(milliseconds(1000), pause * 2 + milliseconds(20));
    }
  }

  bool worth_retrying(const Error& error) const {
    if (!ever_connected_) return false;
    switch (error.code()) {
      case Errc::peer_lost:
      case Errc::cancelled:
      case Errc::timeout:
      case Errc::not_found:  // On its way, or its daemon is starting.
        return true;
      default:
        return false;
    }
  }

  // One connection. True: the program has ended. False: open again.
  Result<bool> converse() {
    auto stream = client_.open_attach(rpc::Call());
    api::AttachRequest open;
    open.mutable_open()->set_capsule(options_.capsule);
    open.mutable_open()->set_attach_id(options_.attach_id);
    open.mutable_open()->set_take_over(options_.take_over);
    {
      const std::lock_guard lock(mutex_);
      open.mutable_open()->set_resume(resume_);
      open.mutable_open()->set_out_seq(out_next_);
    }
    if (options_.tty) *open.mutable_open()->mutable_window() = window_size();
    stream->write(open);
    api::AttachReply reply;
    if (!stream->read(reply)) return finish(*stream);
    if (reply.has_closed()) {
      stream->writes_done();
      return closed(reply.closed());
    }
    if (!reply.has_opened()) return make_error(Errc::internal, "attach: no answer to open");
    opened(reply.opened());

    std::thread sender([this, &stream] { send(*stream); });
    bool ended = false;
    bool more = true;
    Result<bool> outcome = false;
    while (more && stream->read(reply)) {
      if (reply.has_output()) {
        write_output(reply.output());
      } else if (reply.has_exited()) {
        end_ = AttachEnd{false, reply.exited().wait_status(), reply.exited().note()};
        ended = true;
        more = false;
      } else if (reply.has_closed()) {
        outcome = closed(reply.closed());
        more = false;
      } else {
        acknowledged(reply);
      }
    }
    stop_sender();
    sender.join();
    stream->writes_done();
    if (ended) {
      stream->cancel();
      return true;
    }
    if (!more) return outcome;
    return finish(*stream);
  }

  static Result<bool> finish(rpc::AttachStream& stream) {
    auto finished = stream.finish();
    if (!finished.ok()) return std::move(finished).error();
    return false;
  }

  Result<bool> closed(const api::AttachReply::Closed& closed) const {
    if (closed.again()) return false;
    const auto code = closed.code() <= static_cast<std::uint32_t>(Errc::busy)
                          ? static_cast<Errc>(closed.code())
                          : Errc::internal;
    return Error(code, closed.reason());
  }

  void opened(const api::AttachReply::Opened& opened) {
    const std::lock_guard lock(mutex_);
    connected_ = true;
    if (resume_ && opened.out_seq() > out_next_) {
      const std::string warning =
          fmt::format("godwit: {} bytes of output were dropped\n", opened.out_seq() - out_next_);
      std::ignore = ::write(STDERR_FILENO, warning.data(), warning.size());
    }
    out_next_ = out_acked_ = opened.out_seq();
    resume_ = true;
    if (!ever_connected_) {
      stdin_base_ = opened.stdin_seq();  // Before us others may have sent some.
    } else {
      drop_acknowledged(opened.stdin_seq());
    }
    ever_connected_ = true;
    stdin_sent_ = std::max(stdin_base_, opened.stdin_seq());
    eof_sent_ = false;
    sending_ = true;
    changed_.notify_all();
  }

  void drop_acknowledged(std::uint64_t seq) {
    if (seq <= stdin_base_) return;
    const std::uint64_t count = std::min<std::uint64_t>(seq - stdin_base_, stdin_.size());
    stdin_.erase(0, count);
    stdin_base_ = seq;
    stdin_sent_ = std::max(stdin_sent_, stdin_base_);
  }

  void acknowledged(const api::AttachReply& reply) {
    const std::lock_guard lock(mutex_);
    if (reply.has_stdin_ack()) drop_acknowledged(reply.stdin_ack());
    if (reply.has_stdin_resend()) {
      stdin_sent_ = std::max(stdin_base_, reply.stdin_resend());
      eof_sent_ = false;
    }
    changed_.notify_all();
  }

  void write_output(const api::AttachReply::Output& output) {
    const int fd = output.stream() == 2 ? STDERR_FILENO : STDOUT_FILENO;
    auto written = write_full(fd, as_bytes(output.data()));
    if (!written.ok() && !output_broken_) {
      // Nobody reads any more: the program gets to know as it would from a pipe of its own.
      output_broken_ = true;
      pass_signal(SIGPIPE);
    }
    const std::lock_guard lock(mutex_);
    out_next_ = output.seq() + output.data().size();
    changed_.notify_all();
  }

  void stop_sender() {
    const std::lock_guard lock(mutex_);
    sending_ = false;
    changed_.notify_all();
  }

  // The only one that writes to the stream.
  void send(rpc::AttachStream& stream) {
    std::unique_lock lock(mutex_);
    while (sending_) {
      api::AttachRequest request;
      const std::uint64_t stdin_end = stdin_base_ + stdin_.size();
      if (detached_) {
        request.mutable_detach();
      } else if (out_next_ > out_acked_) {
        request.set_out_ack(out_next_);
        out_acked_ = out_next_;
      } else if (window_changed_) {
        window_changed_ = false;
        *request.mutable_window() = window_size();
      } else if (stdin_sent_ < stdin_end || (stdin_eof_ && !eof_sent_)) {
        auto* in = request.mutable_stdin();
        in->set_seq(stdin_sent_);
        in->set_data(stdin_.substr(stdin_sent_ - stdin_base_, stdin_read_bytes));
        stdin_sent_ += in->data().size();
        in->set_eof(stdin_eof_ && stdin_sent_ == stdin_end);
        eof_sent_ = in->eof();
      } else {
        changed_.wait(lock);
        continue;
      }
      lock.unlock();
      const bool written = stream.write(request);
      if (request.has_detach()) stream.writes_done();  // The other side ends the stream.
      lock.lock();
      if (!written || request.has_detach()) return;
    }
  }

  // Standard input and signals, for as long as the session lasts.
  void read_input() {
    bool open = options_.use_stdin;
    if (!open) end_of_input(false);
    while (true) {
      bool room = false;
      {
        const std::lock_guard lock(mutex_);
        room = stdin_.size() < stdin_pending_bytes_max;
      }
      pollfd polls[] = {{stop_.get(), POLLIN, 0},
                        {signals_.get(), POLLIN, 0},
                        {open && room ? STDIN_FILENO : -1, POLLIN, 0}};
      // Room comes by acknowledgements, which don't wake this thread.
      if (poll(polls, 3, open && !room ? 10 : -1) < 0 && errno != EINTR) return;
      if (polls[0].revents != 0) return;
      if (polls[1].revents != 0) take_signal();
      if (polls[2].revents != 0) open = read_some();
    }
  }

  bool read_some() {
    std::string bytes(stdin_read_bytes, '\0');
    const ssize_t n = ::read(STDIN_FILENO, bytes.data(), bytes.size());
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return true;
    if (n <= 0) {
      end_of_input(true);
      return false;
    }
    bytes.resize(static_cast<std::size_t>(n));
    const std::lock_guard lock(mutex_);
    if (options_.tty && detach_asked(bytes))
      detached_ = true;
    else
      stdin_ += bytes;
    changed_.notify_all();
    return !detached_;
  }

  void end_of_input(bool tell) {
    const std::lock_guard lock(mutex_);
    stdin_eof_ = tell;
    changed_.notify_all();
  }

  bool detach_asked(const std::string& bytes) {
    for (const char c : bytes) {
      if (detach_armed_ && c == detach_second) return true;
      detach_armed_ = c == detach_first;
    }
    return false;
  }

  void take_signal() {
    signalfd_siginfo info{};
    if (::read(signals_.get(), &info, sizeof info) != sizeof info) return;
    const int signal = static_cast<int>(info.ssi_signo);
    if (signal == SIGWINCH) {
      const std::lock_guard lock(mutex_);
      window_changed_ = options_.tty;
      changed_.notify_all();
    } else if (signal != SIGCONT) {
      pass_signal(signal);
    }
  }

  void pass_signal(int signal) {
    api::SignalRequest request;
    request.set_capsule(options_.capsule);
    request.set_signal(signal);
    request.set_foreground(options_.tty);
    auto sent = client_.signal(rpc::Call(), request);
    // One that comes when the program has just ended is of no use to anybody.
    if (sent.ok() || sent.error().code() == Errc::refused) return;
    const std::string warning =
        fmt::format("godwit: signal {} was not passed on: {}\n", signal, sent.error().what());
    std::ignore = ::write(STDERR_FILENO, warning.data(), warning.size());
  }

  rpc::ApiClient& client_;
  const AttachOptions options_;
  UniqueFd stop_;
  UniqueFd signals_;
  AttachEnd end_;
  bool output_broken_ = false;
  bool detach_armed_ = false;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<bool> connected_{false};  // In the present round of `follow`.
  bool ever_connected_ = false;
  bool resume_;
  bool sending_ = false;
  std::atomic<bool> detached_{false};
  bool window_changed_ = false;
  std::uint64_t out_next_ = 0;
  std::uint64_t out_acked_ = 0;
  std::string stdin_;  // From stdin_base_ on: not acknowledged yet.
  std::uint64_t stdin_base_ = 0;
  std::uint64_t stdin_sent_ = 0;
  bool stdin_eof_ = false;
  bool eof_sent_ = false;
};

}  // namespace

Signals::Signals() {
  const sigset_t set = passed_set();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

Result<AttachEnd> attach(rpc::ApiClient& client, const AttachOptions& options) {
  return Session(client, options).run();
}

std::uint64_t random_attach_id() {
  std::uint64_t id = 0;
  while (id == 0 || id == ~std::uint64_t{0}) {
    id = std::strtoull(random_hex(8).c_str(), nullptr, 16);
  }
  return id;
}

api::WindowSize window_size() {
  api::WindowSize out;
  winsize size{};
  if (ioctl(STDIN_FILENO, TIOCGWINSZ, &size) == 0) {
    out.set_rows(size.ws_row);
    out.set_columns(size.ws_col);
  }
  return out;
}

}  // namespace godwit::cli
