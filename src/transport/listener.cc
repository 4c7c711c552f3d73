// Accepting links. Whoever can reach the port may connect and then say nothing, or say it slowly:
// so each handshake is a small state machine over a non-blocking socket, all of them are polled
// together with the listener, the oldest makes room when there are too many.
#include <poll.h>
#include <sys/socket.h>

#include <list>

#include "base/log.h"
#include "transport/handshake.h"
#include "transport/socket.h"

namespace godwit::transport {
namespace {

class Stranger {
 public:
  enum class Progress { waiting, proved, refused };

  explicit Stranger(UniqueFd fd) : fd_(std::move(fd)), deadline_(Listener::handshake_ms_max) {}

  int fd() const { return fd_.get(); }
  bool late() const { return deadline_.past(); }
  HelloFields fields() const { return fields_; }
  UniqueFd take_fd() { return std::move(fd_); }

  Progress advance(const Token& token) {
    while (true) {
      std::span<std::byte> into =
          greeted_ ? std::span<std::byte>(proof_) : std::span<std::byte>(hello_);
      ssize_t n = ::recv(fd_.get(), into.data() + have_, into.size() - have_, MSG_DONTWAIT);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EAGAIN) return Progress::waiting;
      if (n <= 0) return Progress::refused;
      have_ += static_cast<std::size_t>(n);
      if (have_ < into.size()) continue;
      have_ = 0;
      if (greeted_) return finish(token);
      if (!answer(token)) return Progress::refused;
      greeted_ = true;
    }
  }

 private:
  bool answer(const Token& token) {
    Result<HelloFields> fields = parse_hello(hello_);
    if (!fields.ok()) return false;
    fields_ = *fields;
    nonce_ = random_nonce();
    const Mac mac = authenticate(token, target_role, hello_, nonce_);
    std::array<std::byte, challenge_bytes> challenge;
    std::copy(nonce_.begin(), nonce_.end(), challenge.begin());
    std::copy(mac.begin(), mac.end(), challenge.begin() + nonce_bytes);
    return send_all(fd_.get(), challenge, Deadline(0)).ok();  // An empty socket buffer takes it.
  }

  Progress finish(const Token& token) {
    if (!equal_in_constant_time(authenticate(token, source_role, hello_, nonce_), proof_))
      return Progress::refused;
    const std::array<std::byte, 1> accepted{accepted_byte};
    return send_all(fd_.get(), accepted, Deadline(0)).ok() ? Progress::proved : Progress::refused;
  }

  UniqueFd fd_;
  Deadline deadline_;
  bool greeted_ = false;
  std::size_t have_ = 0;
  Hello hello_{};
  Mac proof_{};
  Nonce nonce_{};
  HelloFields fields_{};
};

}  // namespace

struct Listener::Impl {
  UniqueFd fd;
  std::uint16_t port = 0;
  Token token{};
  LinkOptions options;
  std::list<Stranger> strangers;

  Result<void> take_newcomers() {
    while (true) {
      UniqueFd fd_new(::accept4(fd.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (!fd_new.valid()) {
        if (errno == EAGAIN) return {};
        if (errno == EINTR || errno == ECONNABORTED || errno == EPROTO) continue;
        return os_error("accept");
      }
      if (strangers.size() == strangers_max) strangers.pop_front();
      strangers.emplace_back(std::move(fd_new));
    }
  }

  // A link if one of them has proved itself.
  Result<Link> advance(const std::vector<pollfd>& ready) {
    std::size_t i = 1;
    for (auto it = strangers.begin(); it != strangers.end(); ++i) {
      auto progress = Stranger::Progress::waiting;
      if (i < ready.size() && ready[i].fd == it->fd() && ready[i].revents != 0)
        progress = it->advance(token);
      if (progress == Stranger::Progress::proved) {
        HelloFields fields = it->fields();
        UniqueFd proved = it->take_fd();
        strangers.erase(it);
        TRY(tune(proved.get(), fields.kind, options));
        TRY(set_blocking(proved.get()));
        return Link(std::move(proved), fields.kind, fields.index);
      }
      if (progress == Stranger::Progress::refused || it->late()) {
        LOG(warn, "a connection to the migration port {} was refused: {}", port,
            it->late() ? "too slow" : "it doesn't know the token");
        it = strangers.erase(it);
      } else {
        ++it;
      }
    }
    return Link();
  }
};

Listener::Listener(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Listener::Listener(Listener&&) noexcept = default;
Listener& Listener::operator=(Listener&&) noexcept = default;
Listener::~Listener() = default;
std::uint16_t Listener::port() const { return impl_->port; }
int Listener::fd() const { return impl_->fd.get(); }

Result<Listener> Listener::open(const std::string& address, std::uint16_t port, const Token& token,
                                const LinkOptions& options) {
  Address at = TRY(numeric_address(address, port));
  auto impl = std::make_unique<Impl>();
  impl->token = token;
  impl->options = options;
  impl->fd.reset(::socket(at.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!impl->fd.valid()) return os_error("socket");
  const int fd = impl->fd.get();
  // Accepted sockets inherit it, and data may arrive before they could be tuned.
  TRY(tune(fd, LinkKind::data, options));
  const int on = 1;
  if (::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0)
    return os_error("setsockopt(SO_REUSEADDR)");
  if (::bind(fd, at.get(), at.size) != 0)
    return os_error(fmt::format("bind({}:{})", address, port));
  if (::listen(fd, static_cast<int>(strangers_max)) != 0) return os_error("listen");
  socklen_t size = sizeof at.storage;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&at.storage), &size) != 0)
    return os_error("getsockname");
  impl->port = ntohs(at.storage.ss_family == AF_INET
                         ? reinterpret_cast<const sockaddr_in*>(&at.storage)->sin_port
                         : reinterpret_cast<const sockaddr_in6*>(&at.storage)->sin6_port);
  return Listener(std::move(impl));
}

Result<Link> Listener::accept(std::int64_t timeout_ms) {
  const Deadline deadline(timeout_ms);
  constexpr int late_check_ms = 250;  // How late a slow stranger may be noticed.
  while (true) {
    std::vector<pollfd> ready{{.fd = impl_->fd.get(), .events = POLLIN, .revents = 0}};
    for (const Stranger& stranger : impl_->strangers)
      ready.push_back({.fd = stranger.fd(), .events = POLLIN, .revents = 0});
    if (::poll(ready.data(), ready.size(), std::min(deadline.left_ms(), late_check_ms)) < 0 &&
        errno != EINTR)
      return os_error("poll");
    Link link = TRY(impl_->advance(ready));
    if (link.valid()) return link;
    if (ready[0].revents != 0) TRY(impl_->take_newcomers());
    if (deadline.past()) return make_error(Errc::timeout, "no link came in {} ms", timeout_ms);
  }
}

}  // namespace godwit::transport
