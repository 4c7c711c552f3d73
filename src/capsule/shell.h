// A capsule without its program: namespaces, control groups, private directories, network, and the
// godwit-init that holds them. `run` makes one and spawns into it; the target of a migration makes
// one and restores into it.
//
// Making one takes 15 ms and removing one 30: too long for a migration of 15. So a shell can be
// made before anybody knows which capsule it will be (a spare), and be removed after its capsule
// has left (retired). Its control group, link and state directory are therefore named by a serial
// of the shell, which the run directory holds (file `serial`, the first thing in it); what makes it
// a capsule's is the run directory's name, which rename(2) changes at one stroke:
//   capsules/spare-SERIAL  ->  capsules/ID  ->  capsules/retired-SERIAL
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>

#include "base/ids.h"
#include "base/node_env.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "capsule/init_client.h"
#include "image/image.pb.h"
#include "sys/cgroup.h"
#include "sys/netlink.h"

namespace godwit::capsule {

class Shell {
 public:
  // Makes everything, network gate closed. After an error nothing is left. The caller may have
  // threads.
  static Result<Shell> create(const NodeEnv& env, const image::CapsuleSpec& spec);
  // The same from a spare; from nothing if that is empty, gone or of no use.
  static Result<Shell> create(const NodeEnv& env, const image::CapsuleSpec& spec,
                              const CapsuleId& spare);

  // Makes all that takes long. The answer is its name, under which `destroy` removes it.
  static Result<CapsuleId> make_spare(const NodeEnv& env);
  static bool is_spare(const CapsuleId& id);

  // The id is free again: gate closed, the program gone with its memory. What is left goes by the
  // name answered and is for `destroy`.
  Result<CapsuleId> retire();
  static bool is_retired(const CapsuleId& id);
  static Result<void> destroy_retired(const NodeEnv& env);  // All that are left here.
  // What was kept on disk of shells that no longer are: after a reboot.
  static Result<void> remove_orphaned_state(const NodeEnv& env);

  // An existing one, made by whichever process. Errc::not_found if there is none (or a part of one:
  // then `destroy(env, id)` clears it).
  static Result<Shell> open(const NodeEnv& env, const CapsuleId& id);

  // Kills everything in it and removes everything, from the run directory alone, whatever is left
  // of it and however often it is called. Success means nothing is left.
  static Result<void> destroy(const NodeEnv& env, const CapsuleId& id);
  Result<void> destroy();

  Shell(Shell&&) noexcept;
  Shell& operator=(Shell&&) noexcept;
  ~Shell();  // Leaves the capsule alone.

  const CapsuleId& id() const { return id_; }
  const image::CapsuleSpec& spec() const { return spec_; }

  InitClient& init() { return *init_; }
  pid_t init_pid() const { return init_->init_pid(); }  // As this process numbers it.

  const sys::CgroupGroup& group() const { return *group_; }  // Both leaves; accounts.
  const sys::CgroupGroup& tree() const { return *tree_; }    // What is frozen; limits.
  const std::string& freezer_path() const { return freezer_path_; }
  bool freezer_v2() const { return tree_->freezer_v2(); }

  // Whether frames pass between the bridge and the capsule. Closed after `create`. Without a bridge
  // or an address there is nothing to do.
  Result<void> gate(bool open);
  // Tells the link that the address is here now (gratuitous ARP).
  Result<void> announce();

  std::string link_name() const { return link_name_of(serial_); }  // Outer end of the veth pair.
  std::string state_dir() const { return env_.shell_state_dir(serial_); }

  static std::string socket_path(const NodeEnv& env, const CapsuleId& id);
  static Result<std::string> cgroup_name(const NodeEnv& env, const CapsuleId& id);

 private:
  Shell(NodeEnv env, CapsuleId id, image::CapsuleSpec spec);
  static std::string link_name_of(const std::string& serial);
  static Result<std::string> serial_of(const NodeEnv& env, const CapsuleId& id);
  static Result<void> destroy_what_serial_names(const NodeEnv& env, const std::string& serial);

  // Steps of `create`, each of which `destroy` undoes. First what is the same for all capsules,
  Result<void> make();
  Result<void> make_directories();
  Result<void> make_groups();
  Result<void> start_init();
  Result<void> make_link();
  Result<void> connect_init();
  // then what makes it this one.
  Result<void> settle();
  Result<void> settle_network();
  Result<void> take_over(const CapsuleId& spare);
  Result<void> open_groups();
  // Handles for gate and announce.
  Result<void> open_network();
  Result<void> open_arp();

  NodeEnv env_;
  CapsuleId id_;
  std::string serial_;
  image::CapsuleSpec spec_;
  std::unique_ptr<InitClient> init_;
  std::optional<sys::CgroupGroup> group_;
  std::optional<sys::CgroupGroup> tree_;
  std::string freezer_path_;
  std::optional<sys::Netlink> network_;  // In the node's network namespace.
  int outer_index_ = 0;                  // 0: no network.
  UniqueFd arp_;  // Packet socket in the capsule's; slow to open (5 to 24 ms).
  int inner_index_ = 0;
  sys::Mac inner_mac_;
};

}  // namespace godwit::capsule
