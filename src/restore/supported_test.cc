// What an image asks for and this node can't give, without a process to restore.
// clang-format off: <signal.h> has a macro named as a field of the image.
#include "restore/supported.h"
// clang-format on

#include <gtest/gtest.h>
#include <sys/auxv.h>
#include <sys/socket.h>
#include <sys/user.h>

#include "sys/kernel_features.h"

namespace godwit::restore {
namespace {

constexpr std::uint64_t at_minsigstksz = 51;

// One thread with an alternate stack, of a program that began where signals need `needed_there`.
image::Capsule with_alternate_stack(std::uint64_t bytes, std::uint64_t needed_there) {
  image::Capsule capsule;
  capsule.set_version(1);
  image::Process& p = *capsule.add_processes();
  p.set_pid(10);
  const std::uint64_t auxv[] = {at_minsigstksz, needed_there, 0, 0};
  p.mutable_mm()->set_auxv(auxv, sizeof auxv);
  image::Thread& t = *p.add_threads();
  t.set_tid(10);
  t.set_regs(std::string(sizeof(user_regs_struct), '\0'));
  t.set_altstack_sp(0x7f0000000000);
  t.set_altstack_size(bytes);
  return capsule;
}

TEST(Supported, AnAlternateStackThatIsTooSmallForASignalHereIsRefused) {
  const std::uint64_t here = ::getauxval(at_minsigstksz);
  ASSERT_GT(here, 576u);
  const auto reasons = reasons_against(with_alternate_stack(here - 1, here - 100), true);
  ASSERT_EQ(reasons.size(), 1u);
  EXPECT_NE(reasons[0].find("alternate signal stack"), std::string::npos) << reasons[0];
  EXPECT_TRUE(reasons_against(with_alternate_stack(here, here - 100), true).empty());
}

TEST(Supported, AnAlternateStackThatNeverSufficedIsTheProgramsBusiness) {
  const std::uint64_t here = ::getauxval(at_minsigstksz);
  EXPECT_TRUE(reasons_against(with_alternate_stack(here - 200, here - 100), true).empty());
}

TEST(Supported, WhatOnlyNewerKernelsHaveIsRefusedByNameWhereItIsMissing) {
  image::Capsule capsule = with_alternate_stack(1 << 20, 2048);
  image::Process& p = *capsule.mutable_processes(0);
  p.set_mdwe(1);
  p.set_memory_merge(true);
  p.mutable_threads(0)->set_rseq_size(64);
  constexpr std::uint32_t seal_exec = 0x20;
  capsule.add_private_files()->set_seals(seal_exec);
  const auto missing =
      sys::kernel_feature_names(sys::kernel_features_all & ~sys::kernel_features());
  const auto reasons = reasons_against(capsule, true);
  ASSERT_EQ(reasons.size(), missing.size());
  for (std::size_t i = 0; i < missing.size(); ++i)
    EXPECT_NE(reasons[i].find(missing[i]), std::string::npos) << reasons[i];
}

image::Socket& add_unix_socket(image::Capsule& capsule, int type) {
  image::Socket& socket = *capsule.add_sockets();
  socket.set_id(static_cast<std::uint32_t>(capsule.sockets_size()));
  socket.set_family(AF_UNIX), socket.set_type(static_cast<std::uint32_t>(type));
  return socket;
}

TEST(Supported, UnixSocketsThatCantBeConnectedSoAreRefused) {
  using Change = void (*)(image::Capsule&);
  const Change changes[] = {
      [](image::Capsule& c) { c.mutable_sockets(0)->mutable_unix_end()->set_peer(9); },
      [](image::Capsule& c) { c.mutable_sockets(0)->mutable_unix_end()->set_peer(1); },
      [](image::Capsule& c) { c.mutable_sockets(0)->mutable_unix_end()->set_accepted_of(2); },
      [](image::Capsule& c) { c.mutable_sockets(0)->set_type(SOCK_DGRAM); },
      [](image::Capsule& c) { c.mutable_sockets(1)->set_id(1); },
      [](image::Capsule& c) { c.mutable_sockets(0)->add_queue()->add_files(9); },
      [](image::Capsule& c) { c.mutable_sockets(0)->set_local(std::string(300, 'x')); },
      [](image::Capsule& c) { c.mutable_sockets(0)->set_listening(true); },
      [](image::Capsule& c) { c.mutable_sockets(0)->mutable_unix_end()->set_peer_outside(true); },
  };
  image::Capsule capsule = with_alternate_stack(1 << 20, 2048);
  add_unix_socket(capsule, SOCK_STREAM).mutable_unix_end()->set_peer(2);
  add_unix_socket(capsule, SOCK_STREAM).mutable_unix_end()->set_peer(1);
  EXPECT_TRUE(reasons_against(capsule, true).empty());
  for (std::size_t i = 0; i < std::size(changes); ++i) {
    image::Capsule changed = capsule;
    changes[i](changed);
    EXPECT_FALSE(reasons_against(changed, true).empty()) << "change " << i;
  }
}

}  // namespace
}  // namespace godwit::restore
