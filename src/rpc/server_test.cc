// Who is asking: the part of the API that must not err.
#include "rpc/server.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "base/io.h"
#include "rpc/client.h"

namespace godwit::rpc {
namespace {

// Answers with what it knows of the caller.
class EchoApi : public Api, public NodeApi {
 public:
  Result<api::RunReply> run(const Call& call, const api::RunRequest&) override {
    api::RunReply reply;
    reply.mutable_capsule()->set_uid(call.uid);
    reply.mutable_capsule()->set_state(call.forwarded ? "forwarded" : "direct");
    return reply;
  }
  Result<api::PsReply> ps(const Call&, const api::PsRequest&) override {
    return Error(Errc::in_doubt, "both words", ENOSPC);
  }
  Result<void> attach(const Call&, const api::AttachRequest::Open& open,
                      AttachChannel& channel) override {
    if (open.capsule() == "other") return make_error(Errc::not_found, "no capsule other");
    api::AttachReply reply;
    reply.mutable_opened()->set_out_seq(open.out_seq());
    channel.write(reply);
    api::AttachRequest request;
    while (channel.read(request)) {
      auto* out = reply.mutable_output();
      out->set_seq(request.stdin().seq());
      out->set_data(request.stdin().data());
      channel.write(reply);
    }
    return {};
  }
  Result<void> migrate(const Call&, const api::MigrateRequest&,
                       Sink<api::MigrateEvent>& sink) override {
    for (int i = 0; i < 3; ++i) {
      api::MigrateEvent event;
      event.mutable_progress()->set_bytes_sent(static_cast<std::uint64_t>(i));
      sink.write(event);
    }
    return make_error(Errc::refused, "enough");
  }
  Result<api::NodeInfo> status(const node::StatusRequest&) override {
    api::NodeInfo info;
    info.set_name("asked");
    return info;
  }
  Result<node::ReleaseReply> release(const std::string& peer,
                                     const node::ReleaseRequest&) override {
    return make_error(Errc::refused, "{}", peer);
  }

  Error no() const { return make_error(Errc::internal, "not in this test"); }
  Result<api::NodesReply> nodes(const Call&, const api::NodesRequest&) override { return no(); }
  Result<void> logs(const Call&, const api::LogsRequest&, Sink<api::LogsChunk>&) override {
    return no();
  }
  Result<api::WaitReply> wait(const Call&, const api::WaitRequest&) override { return no(); }
  Result<api::SignalReply> signal(const Call&, const api::SignalRequest&) override { return no(); }
  Result<api::KillReply> kill(const Call&, const api::KillRequest&) override { return no(); }
  Result<api::FreezeReply> freeze(const Call&, const api::FreezeRequest&) override { return no(); }
  Result<api::CanMigrateReply> can_migrate(const Call&, const api::CanMigrateRequest&) override {
    return no();
  }
  Result<api::HistoryReply> history(const Call&, const api::HistoryRequest&) override {
    return no();
  }
  Result<api::DoctorReply> doctor(const Call&, const api::DoctorRequest&) override { return no(); }
  Result<api::ResolveReply> resolve(const Call&, const api::ResolveRequest&) override {
    return no();
  }
  Result<api::RemoveReply> remove(const Call&, const api::RemoveRequest&) override { return no(); }
  Result<node::FindReply> find(const node::FindRequest&) override { return no(); }
  Result<node::ClaimNameReply> claim_name(const node::ClaimNameRequest&) override { return no(); }
  Result<node::ReserveReply> reserve(const std::string&, const node::ReserveRequest&) override {
    return no();
  }
  Result<node::OutcomeReply> outcome(const std::string&, const node::OutcomeRequest&) override {
    return no();
  }
};

class RpcTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = "/tmp/godwit-rpc-" + random_hex(6);
    std::filesystem::create_directories(dir_);
    std::filesystem::permissions(dir_, std::filesystem::perms(0755));
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  // Asks from a fresh process of that uid, as `GODWIT_RPC_ASK` of this program: gRPC and fork don't
  // go together.
  std::string ask_as(uid_t uid) {
    const std::string out = dir_ + "/answer-" + std::to_string(uid);
    std::ofstream(out).close();
    std::filesystem::permissions(out, std::filesystem::perms(0666));
    const std::string self = std::filesystem::read_symlink("/proc/self/exe");
    const pid_t child = fork();
    if (child == 0) {
      if (setgid(uid) != 0 || setuid(uid) != 0) _exit(9);
      setenv("GODWIT_RPC_ASK", socket().c_str(), 1);
      setenv("GODWIT_RPC_ANSWER", out.c_str(), 1);
      execl(self.c_str(), self.c_str(), "--gtest_filter=*EachUserIsKnown*", nullptr);
      _exit(8);
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0) << "the asking process failed";
    auto answer = read_file(out);
    return answer.ok() ? *answer : "";
  }
  std::string socket() const { return dir_ + "/sock"; }

  // ca.crt, NAME.crt, NAME.key; `authority` signs.
  void make_authority(const std::string& authority) {
    shell(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        "-subj /CN=" +
        authority + " -keyout " + authority + ".key -out " + authority + ".crt");
  }
  TlsFiles make_node(const std::string& authority, const std::string& name) {
    shell("openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=" + name +
          " -keyout " + name + ".key -out " + name + ".csr && printf 'subjectAltName=DNS:" + name +
          "' > " + name + ".ext && openssl x509 -req -days 2 -in " + name + ".csr -CA " +
          authority + ".crt -CAkey " + authority + ".key -CAcreateserial -extfile " + name +
          ".ext -out " + name + ".crt");
    return {dir_ + "/" + authority + ".crt", dir_ + "/" + name + ".crt",
            dir_ + "/" + name + ".key"};
  }
  void shell(const std::string& command) {
    const std::string line = "cd " + dir_ + " && ( " + command + " ) > openssl.log 2>&1";
    ASSERT_EQ(std::system(line.c_str()), 0) << read_file(dir_ + "/openssl.log").value();
  }

  std::string dir_;
  EchoApi api_;
};

// The process that ask_as executes.
void ask_and_tell(const char* socket) {
  Call lie;
  lie.uid = 0;
  auto reply = connect_unix(socket)->run(lie, api::RunRequest());
  ASSERT_TRUE(reply.ok()) << reply.error().what();
  const std::string answer =
      reply->capsule().state() + " " + std::to_string(reply->capsule().uid());
  ASSERT_TRUE(write_file(std::getenv("GODWIT_RPC_ANSWER"), answer).ok());
}

TEST_F(RpcTest, EachUserIsKnownByTheSocketAlone) {
  if (const char* to_ask = std::getenv("GODWIT_RPC_ASK")) return ask_and_tell(to_ask);
  if (geteuid() != 0) GTEST_SKIP() << "needs root to become other users";
  auto server = UnixServer::start(socket(), api_, UnixLimits());
  ASSERT_TRUE(server.ok()) << server.error().what();
  EXPECT_EQ(ask_as(0), "direct 0");
  EXPECT_EQ(ask_as(65534), "direct 65534");
  EXPECT_EQ(ask_as(12345), "direct 12345");
  EXPECT_EQ(ask_as(65534), "direct 65534");
  EXPECT_EQ((*server)->servers(), 3);
}

TEST_F(RpcTest, ErrorsArriveAsWhatTheyWere) {
  auto server = UnixServer::start(socket(), api_, UnixLimits());
  ASSERT_TRUE(server.ok());
  auto reply = connect_unix(socket())->ps(Call(), api::PsRequest());
  ASSERT_FALSE(reply.ok());
  EXPECT_EQ(reply.error().code(), Errc::in_doubt);
  EXPECT_EQ(reply.error().what(), "both words");
  EXPECT_EQ(reply.error().sys_errno(), ENOSPC);
}

TEST_F(RpcTest, NobodyThereIsPeerLost) {
  auto reply = connect_unix(socket())->ps(Call(), api::PsRequest());
  ASSERT_FALSE(reply.ok());
  EXPECT_EQ(reply.error().code(), Errc::peer_lost);
}

TEST_F(RpcTest, AStreamDeliversWhatCameBeforeItsError) {
  class Counter : public Sink<api::MigrateEvent> {
   public:
    bool write(const api::MigrateEvent&) override { return ++count > 0; }
    int count = 0;
  };
  auto server = UnixServer::start(socket(), api_, UnixLimits());
  ASSERT_TRUE(server.ok());
  Counter counter;
  auto done = connect_unix(socket())->migrate(Call(), api::MigrateRequest(), counter);
  EXPECT_EQ(counter.count, 3);
  ASSERT_FALSE(done.ok());
  EXPECT_EQ(done.error().code(), Errc::refused);
}

TEST_F(RpcTest, AConnectionTooManyIsTurnedAway) {
  auto server = UnixServer::start(
      socket(), api_,
      {.connections_per_user = 2, .calls_per_user = 8, .idle = std::chrono::seconds(60)});
  ASSERT_TRUE(server.ok());
  auto first = connect_unix(socket());
  auto second = connect_unix(socket());
  ASSERT_TRUE(first->run(Call(), api::RunRequest()).ok());
  ASSERT_TRUE(second->run(Call(), api::RunRequest()).ok());
  auto third = connect_unix(socket());
  EXPECT_FALSE(third->run(Call(), api::RunRequest()).ok());
  third.reset();
  first.reset();
  second.reset();
  // The places are free again once the server has seen the ends.
  bool again = false;
  for (int tries = 0; tries < 100 && !again; ++tries) {
    again = connect_unix(socket())->run(Call(), api::RunRequest()).ok();
  }
  EXPECT_TRUE(again);
}

TEST_F(RpcTest, ANodeSpeaksForItsUsersAndIsKnownByItsCertificate) {
  make_authority("ca");
  const TlsFiles n1 = make_node("ca", "n1");
  const TlsFiles n2 = make_node("ca", "n2");
  auto server = NodeServer::start("127.0.0.1:0", n1, {"n2"}, api_, api_);
  ASSERT_TRUE(server.ok()) << server.error().what();
  const std::string address = "127.0.0.1:" + std::to_string((*server)->port());
  auto client = connect_node("n1", address, n2, std::chrono::seconds(10));
  ASSERT_TRUE(client.ok());
  Call call;
  call.uid = 4711;
  auto reply = (*client)->api().run(call, api::RunRequest());
  ASSERT_TRUE(reply.ok()) << reply.error().what();
  EXPECT_EQ(reply->capsule().uid(), 4711u);
  EXPECT_EQ(reply->capsule().state(), "forwarded");
  auto released = (*client)->release("", node::ReleaseRequest());
  ASSERT_FALSE(released.ok());
  EXPECT_NE(released.error().what().find("n2"), std::string::npos) << released.error().what();
}

TEST_F(RpcTest, OnlyNodesOfTheClusterAreServed) {
  make_authority("ca");
  make_authority("other-ca");
  const TlsFiles n1 = make_node("ca", "n1");
  const TlsFiles stranger = make_node("ca", "n9");
  TlsFiles forged = make_node("other-ca", "n2");
  forged.ca = n1.ca;
  auto server = NodeServer::start("127.0.0.1:0", n1, {"n2"}, api_, api_);
  ASSERT_TRUE(server.ok());
  const std::string address = "127.0.0.1:" + std::to_string((*server)->port());
  auto as_stranger = connect_node("n1", address, stranger, std::chrono::seconds(10));
  ASSERT_TRUE(as_stranger.ok());
  auto refused = (*as_stranger)->status(node::StatusRequest());
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Errc::permission);
  EXPECT_FALSE((*as_stranger)->api().run(Call(), api::RunRequest()).ok());
  auto as_forger = connect_node("n1", address, forged, std::chrono::seconds(2));
  ASSERT_TRUE(as_forger.ok());
  EXPECT_FALSE((*as_forger)->status(node::StatusRequest()).ok());
}

TEST_F(RpcTest, AnAttachmentEchoesAndRefuses) {
  auto server = UnixServer::start(socket(), api_, UnixLimits());
  ASSERT_TRUE(server.ok());
  auto client = connect_unix(socket());
  auto stream = client->open_attach(Call());
  api::AttachRequest request;
  request.mutable_open()->set_out_seq(77);
  stream->write(request);
  api::AttachReply reply;
  ASSERT_TRUE(stream->read(reply));
  EXPECT_EQ(reply.opened().out_seq(), 77u);
  request.mutable_stdin()->set_data("abc");
  stream->write(request);
  ASSERT_TRUE(stream->read(reply));
  EXPECT_EQ(reply.output().data(), "abc");
  stream->writes_done();
  EXPECT_FALSE(stream->read(reply));
  EXPECT_TRUE(stream->finish().ok());

  auto refused = client->open_attach(Call());
  request.mutable_open()->set_capsule("other");
  refused->write(request);
  EXPECT_FALSE(refused->read(reply));
  auto why = refused->finish();
  ASSERT_FALSE(why.ok());
  EXPECT_EQ(why.error().code(), Errc::not_found);
}

}  // namespace
}  // namespace godwit::rpc
