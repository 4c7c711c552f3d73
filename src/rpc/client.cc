#include "rpc/client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>

#include "base/io.h"
#include "rpc/attach_reader.h"
#include "rpc/status.h"
#include "wire/api.grpc.pb.h"
#include "wire/node.grpc.pb.h"

namespace godwit::rpc {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Longest that a call which changes something may take before the caller stops waiting.
constexpr seconds change_limit{60};

// A reservation makes a worker listen, the question for an outcome may do as well; both end sooner
// when the connection does.
constexpr seconds reserve_limit{60};
constexpr seconds outcome_limit{60};
// The target finds out by itself, if it doesn't hear it.
constexpr seconds release_limit{10};

// Connections are made by whoever waits for an answer: while nobody does, gRPC looks at a
// connecting socket every 5 s only, and calls meanwhile fail at once. So every call first lends its
// thread for a moment, if it isn't connected.
constexpr milliseconds connect_patience{3000};

// An answer that is late is not a dead node: on a machine with load 60 some took 5 s. So a node is
// waited for long, as long as it has been answering. Once it has not, questions to it are short
// until it answers again: else one dead node would make every `ps` slow.
constexpr milliseconds patience_with_the_silent{1000};

class Patience {
 public:
  milliseconds connect() const { return silent_ ? patience_with_the_silent / 2 : connect_patience; }
  milliseconds query(milliseconds limit) const {
    return silent_ && limit.count() > 0 ? std::min(limit, 2 * patience_with_the_silent) : limit;
  }
  void learn(const grpc::Status& status) {
    silent_ = status.error_code() == grpc::StatusCode::UNAVAILABLE ||
              status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED;
  }

 private:
  std::atomic<bool> silent_{false};
};

void help_connect(grpc::Channel& channel, const Patience& patience) {
  if (channel.GetState(true) != GRPC_CHANNEL_READY) {
    channel.WaitForConnected(std::chrono::system_clock::now() + patience.connect());
  }
}

class ClientAttachStream final : public AttachStream {
 public:
  explicit ClientAttachStream(std::unique_ptr<grpc::ClientContext> context, api::Api::Stub& stub)
      : context_(std::move(context)), stream_(stub.Attach(context_.get())) {}
  // The stream must have been finished before it is destroyed: gRPC demands it.
  ~ClientAttachStream() override {
    if (!finished_) {
      context_->TryCancel();
      stream_->Finish().IgnoreError();
    }
  }
  bool write(const api::AttachRequest& request) override { return stream_->Write(request); }
  bool read(api::AttachReply& reply) override { return stream_->Read(&reply); }
  void writes_done() override { stream_->WritesDone(); }
  void cancel() override { context_->TryCancel(); }
  Result<void> finish() override {
    finished_ = true;
    const grpc::Status status = stream_->Finish();
    if (!status.ok()) return from_status(status);
    return {};
  }

 private:
  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<grpc::ClientReaderWriter<api::AttachRequest, api::AttachReply>> stream_;
  bool finished_ = false;
};

class ApiClientImpl final : public ApiClient {
 public:
  // `query` of zero: no deadlines (a person waits, and can press ^C).
  ApiClientImpl(std::shared_ptr<grpc::Channel> channel, bool send_uid, milliseconds query,
                std::shared_ptr<Patience> patience)
      : channel_(std::move(channel)),
        stub_(api::Api::NewStub(channel_)),
        send_uid_(send_uid),
        query_(query),
        patience_(std::move(patience)) {}

  Result<api::RunReply> run(const Call& c, const api::RunRequest& q) override {
    return unary(c, q, change_limit, &api::Api::Stub::Run);
  }
  Result<api::PsReply> ps(const Call& c, const api::PsRequest& q) override {
    return unary(c, q, patience_->query(query_), &api::Api::Stub::Ps);
  }
  Result<api::NodesReply> nodes(const Call& c, const api::NodesRequest& q) override {
    return unary(c, q, patience_->query(query_), &api::Api::Stub::Nodes);
  }
  Result<api::WaitReply> wait(const Call& c, const api::WaitRequest& q) override {
    return unary(c, q, change_limit, &api::Api::Stub::Wait);
  }
  Result<api::SignalReply> signal(const Call& c, const api::SignalRequest& q) override {
    return unary(c, q, change_limit, &api::Api::Stub::Signal);
  }
  Result<api::KillReply> kill(const Call& c, const api::KillRequest& q) override {
    return unary(c, q, change_limit, &api::Api::Stub::Kill);
  }
  Result<api::FreezeReply> freeze(const Call& c, const api::FreezeRequest& q) override {
    return unary(c, q, change_limit, &api::Api::Stub::Freeze);
  }
  Result<api::CanMigrateReply> can_migrate(const Call& c,
                                           const api::CanMigrateRequest& q) override {
    return unary(c, q, change_limit, &api::Api::Stub::CanMigrate);
  }
  Result<api::HistoryReply> history(const Call& c, const api::HistoryRequest& q) override {
    return unary(c, q, patience_->query(query_), &api::Api::Stub::History);
  }
  Result<api::DoctorReply> doctor(const Call& c, const api::DoctorRequest& q) override {
    return unary(c, q, change_limit, &api::Api::Stub::Doctor);
  }
  Result<api::ResolveReply> resolve(const Call& c, const api::ResolveRequest& q) override {
    return unary(c, q, change_limit, &api::Api::Stub::Resolve);
  }
  Result<api::RemoveReply> remove(const Call& c, const api::RemoveRequest& q) override {
    return unary(c, q, change_limit, &api::Api::Stub::Remove);
  }
  Result<void> logs(const Call& c, const api::LogsRequest& q, Sink<api::LogsChunk>& sink) override {
    return streaming(c, q, sink, &api::Api::Stub::Logs);
  }
  Result<void> migrate(const Call& c, const api::MigrateRequest& q,
                       Sink<api::MigrateEvent>& sink) override {
    return streaming(c, q, sink, &api::Api::Stub::Migrate);
  }

  // Only daemons use it: an attachment whose capsule is on another node.
  Result<void> attach(const Call& call, const api::AttachRequest::Open& open,
                      AttachChannel& channel) override;

  std::unique_ptr<AttachStream> open_attach(const Call& call) override {
    return std::make_unique<ClientAttachStream>(context(call, milliseconds(0)), *stub_);
  }

 private:
  std::unique_ptr<grpc::ClientContext> context(const Call& call, milliseconds limit) const {
    help_connect(*channel_, *patience_);
    auto context = std::make_unique<grpc::ClientContext>();
    if (send_uid_) context->AddMetadata("godwit-uid", fmt::format("{}", call.uid));
    if (send_uid_ && limit.count() > 0) {
      context->set_deadline(std::chrono::system_clock::now() + limit);
    }
    return context;
  }

  template <typename Request, typename Reply>
  Result<Reply> unary(const Call& call, const Request& request, milliseconds limit,
                      grpc::Status (api::Api::Stub::*method)(grpc::ClientContext*, const Request&,
                                                             Reply*)) {
    Reply reply;
    auto ctx = context(call, limit);
    const grpc::Status status = (stub_.get()->*method)(ctx.get(), request, &reply);
    patience_->learn(status);
    if (!status.ok()) return from_status(status);
    return reply;
  }

  template <typename Request, typename Message>
  Result<void> streaming(const Call& call, const Request& request, Sink<Message>& sink,
                         std::unique_ptr<grpc::ClientReader<Message>> (api::Api::Stub::*method)(
                             grpc::ClientContext*, const Request&)) {
    auto ctx = context(call, milliseconds(0));
    auto reader = (stub_.get()->*method)(ctx.get(), request);
    Message message;
    while (reader->Read(&message)) {
      if (!sink.write(message)) ctx->TryCancel();
    }
    const grpc::Status status = reader->Finish();
    if (!status.ok()) return from_status(status);
    return {};
  }

  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<api::Api::Stub> stub_;
  bool send_uid_;
  milliseconds query_;
  std::shared_ptr<Patience> patience_;
};

Result<void> ApiClientImpl::attach(const Call& call, const api::AttachRequest::Open& open,
                                   AttachChannel& channel) {
  auto upstream = open_attach(call);
  api::AttachRequest first;
  *first.mutable_open() = open;
  upstream->write(first);
  AttachReader to_owner(
      channel, [&](const api::AttachRequest& request) { return upstream->write(request); },
      [&] {
        // If the client is dead (and not only we are), the owner needn't keep output for it.
        if (call.is_cancelled()) {
          api::AttachRequest detach;
          detach.mutable_detach();
          upstream->write(detach);
        }
        upstream->writes_done();
      });
  api::AttachReply reply;
  bool last = false;
  while (!last && upstream->read(reply)) {
    last = reply.has_exited() || reply.has_closed();
    if (!channel.write(reply)) break;
  }
  if (last) return {};
  upstream->cancel();
  auto finished = upstream->finish();
  // What the owner decided is final; what happened to the connection is not.
  const Errc code = finished.ok() ? Errc::peer_lost : finished.error().code();
  auto* closed = reply.mutable_closed();
  closed->set_code(static_cast<std::uint32_t>(code));
  closed->set_reason(finished.ok() ? "the stream ended" : finished.error().what());
  closed->set_again(code == Errc::peer_lost || code == Errc::cancelled || code == Errc::timeout);
  channel.write(reply);
  return {};
}

class NodeClientImpl final : public NodeClient {
 public:
  NodeClientImpl(std::string name, std::shared_ptr<grpc::Channel> channel, milliseconds query)
      : name_(std::move(name)),
        channel_(channel),
        stub_(node::Node::NewStub(channel)),
        patience_(std::make_shared<Patience>()),
        api_(channel, true, query, patience_),
        query_(query) {}

  ApiClient& api() override { return api_; }
  Result<api::NodeInfo> status(const node::StatusRequest& q) override {
    return unary(q, patience_->query(query_), &node::Node::Stub::Status);
  }
  Result<node::FindReply> find(const node::FindRequest& q) override {
    return unary(q, patience_->query(query_), &node::Node::Stub::Find);
  }
  Result<node::ClaimNameReply> claim_name(const node::ClaimNameRequest& q) override {
    return unary(q, patience_->query(query_), &node::Node::Stub::ClaimName);
  }
  Result<node::ReserveReply> reserve(const std::string&, const node::ReserveRequest& q) override {
    return unary(q, reserve_limit, &node::Node::Stub::Reserve);
  }
  Result<node::ReleaseReply> release(const std::string&, const node::ReleaseRequest& q) override {
    return unary(q, release_limit, &node::Node::Stub::Release);
  }
  Result<node::OutcomeReply> outcome(const std::string&, const node::OutcomeRequest& q) override {
    return unary(q, outcome_limit, &node::Node::Stub::Outcome);
  }

 private:
  template <typename Request, typename Reply>
  Result<Reply> unary(const Request& request, milliseconds limit,
                      grpc::Status (node::Node::Stub::*method)(grpc::ClientContext*, const Request&,
                                                               Reply*)) {
    help_connect(*channel_, *patience_);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + limit);
    Reply reply;
    const grpc::Status status = (stub_.get()->*method)(&context, request, &reply);
    patience_->learn(status);
    if (!status.ok()) return from_status(status).with(fmt::format("node {}", name_));
    return reply;
  }

  std::string name_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<node::Node::Stub> stub_;
  std::shared_ptr<Patience> patience_;
  ApiClientImpl api_;
  milliseconds query_;
};

// Questions may be asked twice: a connection that stands since before the node was restarted is
// found to be dead only by the first call on it.
constexpr const char* questions_again = R"({"methodConfig": [{
  "name": [{"service": "godwit.node.Node", "method": "Status"},
           {"service": "godwit.node.Node", "method": "Find"},
           {"service": "godwit.node.Node", "method": "Outcome"}],
  "retryPolicy": {"maxAttempts": 2, "initialBackoff": "0.05s", "maxBackoff": "0.1s",
                  "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE"]}}]})";

grpc::ChannelArguments channel_arguments() {
  grpc::ChannelArguments arguments;
  // A daemon that restarts is back within a second; don't wait longer to see it.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 300);
  // In spite of its name: how long one attempt may take. A busy machine's daemon needs some time to
  // answer; attempts that were cut off at 200 ms made a restart last 4 s. Not longer than this,
  // since behind a cut link the kernel repeats its first packet after 1, 3, 7 and 15 s.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 10'000);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);  // What was sent once may have been done.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return arguments;
}

}  // namespace

std::unique_ptr<ApiClient> connect_unix(const std::string& path) {
  grpc::ChannelArguments arguments = channel_arguments();
  // Nothing gets lost here: who listens answers, once its machine lets it; nobody is told at once.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 120'000);
  auto channel =
      grpc::CreateCustomChannel("unix:" + path, grpc::InsecureChannelCredentials(), arguments);
  return std::make_unique<ApiClientImpl>(std::move(channel), false, milliseconds(0),
                                         std::make_shared<Patience>());
}

Result<std::unique_ptr<NodeClient>> connect_node(const std::string& name,
                                                 const std::string& address, const TlsFiles& tls,
                                                 milliseconds query) {
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = TRY(read_file(tls.ca));
  options.pem_cert_chain = TRY(read_file(tls.certificate));
  options.pem_private_key = TRY(read_file(tls.key));
  grpc::ChannelArguments arguments = channel_arguments();
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 1);
  arguments.SetServiceConfigJSON(questions_again);
  arguments.SetSslTargetNameOverride(name);  // The certificate names the node, not its address.
  // For streams, which have no deadline. gRPC makes the second figure TCP's limit too: so after a
  // cut that was longer, a new connection is tried rather than the old one's next retransmission.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 5000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  auto channel = grpc::CreateCustomChannel(address, grpc::SslCredentials(options), arguments);
  return std::unique_ptr<NodeClient>(
      std::make_unique<NodeClientImpl>(name, std::move(channel), query));
}

}  // namespace godwit::rpc
