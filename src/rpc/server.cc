#include "rpc/server.h"

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server_posix.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "base/thread_name.h"
#include "base/unique_fd.h"
#include "rpc/status.h"
#include "wire/api.grpc.pb.h"
#include "wire/node.grpc.pb.h"

namespace godwit::rpc {
namespace {

// Who calls: fixed for a Unix connection, told by a peer node otherwise.
class Identity {
 public:
  virtual ~Identity() = default;
  virtual Result<Call> of(const grpc::ServerContext& context) = 0;
};

class LocalUser final : public Identity {
 public:
  explicit LocalUser(std::uint32_t uid) : uid_(uid) {}
  Result<Call> of(const grpc::ServerContext&) override {
    Call call;
    call.uid = uid_;
    return call;
  }

 private:
  std::uint32_t uid_;
};

class PeerNode final : public Identity {
 public:
  explicit PeerNode(std::vector<std::string> peers) : peers_(std::move(peers)) {}

  Result<std::string> name(const grpc::ServerContext& context) const {
    const auto names = context.auth_context()->FindPropertyValues("x509_common_name");
    if (names.size() == 1) {
      std::string name(names[0].data(), names[0].size());
      if (std::find(peers_.begin(), peers_.end(), name) != peers_.end()) return name;
    }
    return make_error(Errc::permission, "the certificate doesn't name a node of this cluster");
  }

  // A peer is root on its node and has checked its user: it is believed.
  Result<Call> of(const grpc::ServerContext& context) override {
    TRY(name(context));
    const auto& metadata = context.client_metadata();
    const auto found = metadata.find("godwit-uid");
    Call call;
    call.forwarded = true;
    if (found == metadata.end()) return make_error(Errc::invalid, "no godwit-uid");
    const char* end = found->second.data() + found->second.size();
    const auto parsed = std::from_chars(found->second.data(), end, call.uid);
    if (parsed.ec != std::errc() || parsed.ptr != end) {
      return make_error(Errc::invalid, "malformed godwit-uid");
    }
    return call;
  }

 private:
  std::vector<std::string> peers_;
};

template <typename Message>
class WriterSink final : public Sink<Message> {
 public:
  explicit WriterSink(grpc::ServerWriter<Message>& writer) : writer_(writer) {}
  bool write(const Message& message) override { return writer_.Write(message); }

 private:
  grpc::ServerWriter<Message>& writer_;
};

class ServerAttachChannel final : public AttachChannel {
 public:
  using Stream = grpc::ServerReaderWriter<api::AttachReply, api::AttachRequest>;
  ServerAttachChannel(grpc::ServerContext& context, Stream& stream)
      : context_(context), stream_(stream) {}
  bool read(api::AttachRequest& request) override { return stream_.Read(&request); }
  bool write(const api::AttachReply& reply) override { return stream_.Write(reply); }
  void cancel() override { context_.TryCancel(); }

 private:
  grpc::ServerContext& context_;
  Stream& stream_;
};

// Counts calls in progress and remembers when the last one ended, for idle servers.
class Activity {
 public:
  class Scope {
   public:
    explicit Scope(Activity& activity) : activity_(activity) { activity_.calls_++; }
    ~Scope() {
      activity_.last_us_ = monotonic_us();
      activity_.calls_--;
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Activity& activity_;
  };
  void touch() { last_us_ = monotonic_us(); }
  bool idle_for(std::chrono::microseconds least) const {
    return calls_ == 0 && monotonic_us() - last_us_ > least.count();
  }

 private:
  std::atomic<int> calls_{0};
  std::atomic<std::int64_t> last_us_{monotonic_us()};
};

using grpc::ServerContext;
using grpc::Status;

class ApiService final : public api::Api::Service {
 public:
  ApiService(rpc::Api& api, Identity& identity) : api_(api), identity_(identity) {}
  Activity& activity() { return activity_; }

  Status Run(ServerContext* c, const api::RunRequest* q, api::RunReply* p) override {
    return unary(*c, *q, *p, &rpc::Api::run);
  }
  Status Ps(ServerContext* c, const api::PsRequest* q, api::PsReply* p) override {
    return unary(*c, *q, *p, &rpc::Api::ps);
  }
  Status Nodes(ServerContext* c, const api::NodesRequest* q, api::NodesReply* p) override {
    return unary(*c, *q, *p, &rpc::Api::nodes);
  }
  Status Wait(ServerContext* c, const api::WaitRequest* q, api::WaitReply* p) override {
    return unary(*c, *q, *p, &rpc::Api::wait);
  }
  Status Signal(ServerContext* c, const api::SignalRequest* q, api::SignalReply* p) override {
    return unary(*c, *q, *p, &rpc::Api::signal);
  }
  Status Kill(ServerContext* c, const api::KillRequest* q, api::KillReply* p) override {
    return unary(*c, *q, *p, &rpc::Api::kill);
  }
  Status Freeze(ServerContext* c, const api::FreezeRequest* q, api::FreezeReply* p) override {
    return unary(*c, *q, *p, &rpc::Api::freeze);
  }
  Status CanMigrate(ServerContext* c, const api::CanMigrateRequest* q,
                    api::CanMigrateReply* p) override {
    return unary(*c, *q, *p, &rpc::Api::can_migrate);
  }
  Status History(ServerContext* c, const api::HistoryRequest* q, api::HistoryReply* p) override {
    return unary(*c, *q, *p, &rpc::Api::history);
  }
  Status Doctor(ServerContext* c, const api::DoctorRequest* q, api::DoctorReply* p) override {
    return unary(*c, *q, *p, &rpc::Api::doctor);
  }
  Status Resolve(ServerContext* c, const api::ResolveRequest* q, api::ResolveReply* p) override {
    return unary(*c, *q, *p, &rpc::Api::resolve);
  }
  Status Remove(ServerContext* c, const api::RemoveRequest* q, api::RemoveReply* p) override {
    return unary(*c, *q, *p, &rpc::Api::remove);
  }
  Status Logs(ServerContext* c, const api::LogsRequest* q,
              grpc::ServerWriter<api::LogsChunk>* w) override {
    return streaming(*c, *q, *w, &rpc::Api::logs);
  }
  Status Migrate(ServerContext* c, const api::MigrateRequest* q,
                 grpc::ServerWriter<api::MigrateEvent>* w) override {
    return streaming(*c, *q, *w, &rpc::Api::migrate);
  }

  Status Attach(ServerContext* c, ServerAttachChannel::Stream* stream) override {
    Activity::Scope scope(activity_);
    auto call = identify(*c);
    if (!call.ok()) return to_status(call.error());
    api::AttachRequest first;
    if (!stream->Read(&first) || !first.has_open()) {
      return to_status(make_error(Errc::invalid, "attach: the first message must be `open`"));
    }
    ServerAttachChannel channel(*c, *stream);
    auto done = api_.attach(*call, first.open(), channel);
    return done.ok() ? Status::OK : to_status(done.error());
  }

 private:
  Result<Call> identify(ServerContext& context) {
    Call call = TRY(identity_.of(context));
    call.cancelled = [&context] { return context.IsCancelled(); };
    return call;
  }

  template <typename Request, typename Reply>
  Status unary(ServerContext& context, const Request& request, Reply& reply,
               Result<Reply> (rpc::Api::*method)(const Call&, const Request&)) {
    Activity::Scope scope(activity_);
    auto call = identify(context);
    if (!call.ok()) return to_status(call.error());
    auto result = (api_.*method)(*call, request);
    if (!result.ok()) return to_status(result.error());
    reply.Swap(&result.value());
    return Status::OK;
  }

  template <typename Request, typename Message>
  Status streaming(ServerContext& context, const Request& request,
                   grpc::ServerWriter<Message>& writer,
                   Result<void> (rpc::Api::*method)(const Call&, const Request&, Sink<Message>&)) {
    Activity::Scope scope(activity_);
    auto call = identify(context);
    if (!call.ok()) return to_status(call.error());
    WriterSink<Message> sink(writer);
    auto result = (api_.*method)(*call, request, sink);
    return result.ok() ? Status::OK : to_status(result.error());
  }

  rpc::Api& api_;
  Identity& identity_;
  Activity activity_;
};

class NodeService final : public node::Node::Service {
 public:
  NodeService(NodeApi& api, PeerNode& peers) : api_(api), peers_(peers) {}

  grpc::Status Status(ServerContext* c, const node::StatusRequest* q, api::NodeInfo* p) override {
    return answer(*c, *p, [&](const std::string&) { return api_.status(*q); });
  }
  grpc::Status Find(ServerContext* c, const node::FindRequest* q, node::FindReply* p) override {
    return answer(*c, *p, [&](const std::string&) { return api_.find(*q); });
  }
  grpc::Status ClaimName(ServerContext* c, const node::ClaimNameRequest* q,
                         node::ClaimNameReply* p) override {
    return answer(*c, *p, [&](const std::string&) { return api_.claim_name(*q); });
  }
  grpc::Status Reserve(ServerContext* c, const node::ReserveRequest* q,
                       node::ReserveReply* p) override {
    return answer(*c, *p, [&](const std::string& peer) { return api_.reserve(peer, *q); });
  }
  grpc::Status Release(ServerContext* c, const node::ReleaseRequest* q,
                       node::ReleaseReply* p) override {
    return answer(*c, *p, [&](const std::string& peer) { return api_.release(peer, *q); });
  }
  grpc::Status Outcome(ServerContext* c, const node::OutcomeRequest* q,
                       node::OutcomeReply* p) override {
    return answer(*c, *p, [&](const std::string& peer) { return api_.outcome(peer, *q); });
  }

 private:
  template <typename Reply, typename Function>
  grpc::Status answer(ServerContext& context, Reply& reply, Function&& function) {
    auto peer = peers_.name(context);
    if (!peer.ok()) return to_status(peer.error());
    auto result = function(*peer);
    if (!result.ok()) return to_status(result.error());
    reply.Swap(&result.value());
    return grpc::Status::OK;
  }

  NodeApi& api_;
  PeerNode& peers_;
};

void set_common(grpc::ServerBuilder& builder, int threads_max) {
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, 2);
  // Clients notice a dead peer by pings; allow them also while nothing is said.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 500);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.SetResourceQuota(grpc::ResourceQuota().SetMaxThreads(threads_max));
}

void stop(grpc::Server& server) {
  server.Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  server.Wait();
}

// The server of one uid.
class UserServer {
 public:
  UserServer(Api& api, std::uint32_t uid, const UnixLimits& limits)
      : limits_(limits), identity_(uid), service_(api, identity_) {
    grpc::ServerBuilder builder;
    set_common(builder, limits.calls_per_user + 4);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
  }
  ~UserServer() {
    if (server_) stop(*server_);
  }

  bool started() const { return server_ != nullptr; }
  bool idle() { return service_.activity().idle_for(limits_.idle) && connections() == 0; }

  // Takes the connection unless the user has too many open.
  bool add(UniqueFd fd) {
    struct stat info {};
    if (fstat(fd.get(), &info) != 0) return false;
    if (static_cast<int>(sockets_.size()) >= limits_.connections_per_user &&
        connections() >= limits_.connections_per_user) {
      return false;
    }
    sockets_.insert(info.st_ino);
    service_.activity().touch();
    grpc::AddInsecureChannelFromFd(server_.get(), fd.release());
    return true;
  }

 private:
  // gRPC owns the descriptors and doesn't say when it closes one: look which are still open.
  // Sockets are known by inode; an inode is reused only after it was closed, by then it's no
  // matter.
  int connections() {
    std::set<ino_t> open;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", error)) {
      struct stat info {};
      if (stat(entry.path().c_str(), &info) == 0 && S_ISSOCK(info.st_mode))
        open.insert(info.st_ino);
    }
    std::erase_if(sockets_, [&](ino_t inode) { return !open.contains(inode); });
    return static_cast<int>(sockets_.size());
  }

  UnixLimits limits_;
  LocalUser identity_;
  ApiService service_;
  std::set<ino_t> sockets_;
  std::unique_ptr<grpc::Server> server_;
};

class UnixServerImpl final : public UnixServer {
 public:
  UnixServerImpl(UniqueFd listener, UniqueFd stop, Api& api, UnixLimits limits)
      : listener_(std::move(listener)), stop_(std::move(stop)), api_(api), limits_(limits) {
    thread_ = std::thread([this] {
      name_thread("people");
      accept_loop();
    });
  }
  ~UnixServerImpl() override {
    const std::uint64_t one = 1;
    if (auto woken = write_full(stop_.get(), std::as_bytes(std::span(&one, 1))); !woken.ok()) {
      LOG(error, "stop of the API server: {}", woken.error().what());
    }
    thread_.join();
  }
  int servers() const override { return servers_count_; }

 private:
  void accept_loop() {
    while (true) {
      pollfd polls[] = {{listener_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
      const int ready = poll(polls, 2, 1000);
      if (polls[1].revents != 0 && ready > 0) return;
      drop_idle();
      if (ready <= 0 || polls[0].revents == 0) continue;
      UniqueFd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (fd.valid()) {
        serve(std::move(fd));
      } else if (errno == EMFILE || errno == ENFILE) {
        LOG(warn, "{}", os_error("accept").what());
        poll(&polls[1], 1, 100);  // Nothing can be accepted until something is closed.
      }
    }
  }

  void serve(UniqueFd fd) {
    ucred peer{};
    socklen_t size = sizeof peer;
    if (getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
      LOG(warn, "{}", os_error("getsockopt(SO_PEERCRED)").what());
      return;
    }
    auto& server = servers_[peer.uid];
    if (!server) {
      server = std::make_unique<UserServer>(api_, peer.uid, limits_);
      servers_count_ = static_cast<int>(servers_.size());
    }
    if (!server->started()) {
      LOG(error, "no server could be started for uid {}", peer.uid);
      servers_.erase(peer.uid);
    } else if (!server->add(std::move(fd))) {
      LOG(warn, "uid {} has {} connections already", peer.uid, limits_.connections_per_user);
    }
  }

  void drop_idle() {
    std::erase_if(servers_, [](const auto& entry) { return entry.second->idle(); });
    servers_count_ = static_cast<int>(servers_.size());
  }

  UniqueFd listener_;
  UniqueFd stop_;
  Api& api_;
  UnixLimits limits_;
  std::map<std::uint32_t, std::unique_ptr<UserServer>> servers_;  // Of the accepting thread.
  std::atomic<int> servers_count_{0};
  std::thread thread_;
};

class NodeServerImpl final : public NodeServer {
 public:
  NodeServerImpl(std::vector<std::string> peers, Api& api, NodeApi& node_api)
      : identity_(std::move(peers)), api_(api, identity_), node_(node_api, identity_) {}
  ~NodeServerImpl() override {
    if (server_) stop(*server_);
  }
  int port() const override { return port_; }

  Result<void> listen(const std::string& address, const TlsFiles& tls) {
    grpc::SslServerCredentialsOptions options(
        GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
    options.pem_root_certs = TRY(read_file(tls.ca));
    options.pem_key_cert_pairs.push_back(
        {TRY(read_file(tls.key)), TRY(read_file(tls.certificate))});
    grpc::ServerBuilder builder;
    set_common(builder, 1024);
    // Two daemons on one port would each get half of the calls.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddListeningPort(address, grpc::SslServerCredentials(options), &port_);
    builder.RegisterService(&api_);
    builder.RegisterService(&node_);
    server_ = builder.BuildAndStart();
    if (!server_ || port_ == 0) {
      return make_error(Errc::internal, "can't listen on {} for other nodes", address);
    }
    return {};
  }

 private:
  PeerNode identity_;
  ApiService api_;
  NodeService node_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

Result<std::unique_ptr<UnixServer>> UnixServer::start(const std::string& path, Api& api,
                                                      UnixLimits limits) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return make_error(Errc::invalid, "socket path {} is too long", path);
  }
  path.copy(address.sun_path, path.size());
  UniqueFd listener(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener.valid()) return os_error("socket(AF_UNIX)");
  // Bound under another name first: so nobody connects before the mode is set, and an old socket
  // is replaced in one step.
  const std::string fresh = path + ".new";
  if (fresh.size() >= sizeof address.sun_path) {
    return make_error(Errc::invalid, "socket path {} is too long", path);
  }
  fresh.copy(address.sun_path, fresh.size());
  unlink(fresh.c_str());
  if (bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return os_error(fmt::format("bind({})", fresh));
  }
  if (listen(listener.get(), 128) != 0) return os_error(fmt::format("listen({})", path));
  if (chmod(fresh.c_str(), 0666) != 0) return os_error(fmt::format("chmod({})", fresh));
  if (rename(fresh.c_str(), path.c_str()) != 0) {
    return os_error(fmt::format("rename({}, {})", fresh, path));
  }
  UniqueFd stop(eventfd(0, EFD_CLOEXEC));
  if (!stop.valid()) return os_error("eventfd");
  return std::unique_ptr<UnixServer>(
      std::make_unique<UnixServerImpl>(std::move(listener), std::move(stop), api, limits));
}

Result<std::unique_ptr<NodeServer>> NodeServer::start(const std::string& address,
                                                      const TlsFiles& tls,
                                                      std::vector<std::string> peers, Api& api,
                                                      NodeApi& node_api) {
  auto server = std::make_unique<NodeServerImpl>(std::move(peers), api, node_api);
  TRY(server->listen(address, tls));
  return std::unique_ptr<NodeServer>(std::move(server));
}

}  // namespace godwit::rpc
