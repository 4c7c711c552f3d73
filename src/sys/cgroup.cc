// Control groups of both versions behind one interface.
//
// Facts (Linux 6.18, 2 cores):
// - Writing to cgroup.procs waits for a grace period of RCU: 10.9 ms for the first write, 25 to 130
// us
//   for others that follow at once, in whichever hierarchy. Making and removing a directory: 30 to
//   60 us.
// - v2's freezer is done after 14 us, seen by reading cgroup.events right after writing
// cgroup.freeze;
//   waiting for the file's change notification takes 10 ms. So: read, yield, read, and only
//   then sleep between reads.
// - A v2 group kills what is in it by cgroup.kill (5.14), forks included, frozen or not. With v1
// the
//   list must be read and killed until it is empty, and a frozen task dies only once it is thawed.
// - With v2 a group that passes controllers on to its children can't hold processes itself.
// Controllers
//   are passed on down to the parent of the group made, which hence holds none.
#include "sys/cgroup.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <charconv>
#include <ctime>

#include "base/clock.h"
#include "base/io.h"

namespace godwit::sys {
namespace {

constexpr std::int64_t freeze_us_max = 20'000'000;
constexpr std::int64_t kill_us_max = 60'000'000;
constexpr int spins_before_sleep = 200;
constexpr long poll_ns = 200'000;
constexpr std::int64_t cfs_period_us = 100'000;
constexpr std::string_view wanted_controllers[] = {"cpu", "cpuacct", "memory", "freezer"};

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> out;
  while (!text.empty()) {
    std::size_t end = std::min(text.find(separator), text.size());
    if (end > 0) out.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

// The kernel writes space, tab, newline and backslash in mountinfo as \ooo.
std::string unescape(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      out += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                               (text[i + 3] - '0'));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

template <typename Int>
Result<Int> parse_number(std::string_view text, const std::string& where) {
  Int value{};
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.remove_suffix(1);
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    return make_error(Errc::invalid, "{}: not a number: \"{}\"", where, text);
  return value;
}

// Among the options of a v1 mount, which stand side by side with its controllers.
bool is_controller(std::string_view option) {
  constexpr std::string_view others[] = {
      "rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods"};
  return std::find(std::begin(others), std::end(others), option) == std::end(others) &&
         !option.starts_with("release_agent=");
}

bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

bool is_gone(const Error& error) {
  return error.sys_errno() == ENOENT || error.sys_errno() == ENODEV;
}

// The number after `key` and a space at the start of a line.
Result<std::uint64_t> keyed_number(const std::string& path, std::string_view key) {
  std::string text = TRY(read_file(path));
  for (std::string_view line : split(text, '\n')) {
    if (line.starts_with(key) && line.size() > key.size() && line[key.size()] == ' ')
      return parse_number<std::uint64_t>(line.substr(key.size() + 1), path);
  }
  return make_error(Errc::invalid, "{}: no line \"{}\"", path, key);
}

// One that is gone has none.
Result<std::vector<std::string>> children_of(const std::string& directory) {
  std::vector<std::string> out;
  std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(directory.c_str()), ::closedir);
  if (dir == nullptr && errno == ENOENT) return out;
  if (dir == nullptr) return os_error(fmt::format("opendir({})", directory));
  while (true) {
    errno = 0;
    const dirent* entry = ::readdir(dir.get());
    if (entry == nullptr && errno != 0 && errno != ENOENT)
      return os_error(fmt::format("readdir({})", directory));
    if (entry == nullptr) return out;
    std::string_view name = entry->d_name;
    if (entry->d_type == DT_DIR && name != "." && name != "..")
      out.push_back(fmt::format("{}/{}", directory, name));
  }
}

Result<void> collect_pids(const std::string& directory, std::vector<pid_t>& out) {
  Result<std::string> text = read_file(directory + "/cgroup.procs");
  if (!text.ok()) {
    if (is_gone(text.error())) return {};
    return std::move(text).error();
  }
  for (std::string_view line : split(*text, '\n'))
    out.push_back(TRY(parse_number<pid_t>(line, directory)));
  for (const std::string& child : TRY(children_of(directory))) TRY(collect_pids(child, out));
  return {};
}

// Calls `done` until it says true: first at full speed, then with short sleeps.
template <typename Done>
Result<void> wait_until(std::int64_t us_max, const std::string& what, Done done) {
  std::int64_t deadline_us = monotonic_us() + us_max;
  for (int spin = 0;; ++spin) {
    if (TRY(done())) return {};
    if (monotonic_us() > deadline_us)
      return make_error(Errc::timeout, "{}: not after {} us", what, us_max);
    if (spin < spins_before_sleep) {
      ::sched_yield();
    } else {
      timespec pause{0, poll_ns};
      ::nanosleep(&pause, nullptr);
    }
  }
}

Result<bool> frozen_v2(const std::string& path) {
  return TRY(keyed_number(path + "/cgroup.events", "frozen")) == 1;
}

Result<void> thaw_v1(const std::string& path) {
  return write_file(path + "/freezer.state", "THAWED");
}

// A group frozen by itself stays frozen when its parent is thawed, so each one is told.
Result<void> thaw_all_v1(const std::string& path) {
  Result<void> thawed = thaw_v1(path);
  if (!thawed.ok() && !is_gone(thawed.error())) return thawed;
  for (const std::string& child : TRY(children_of(path))) TRY(thaw_all_v1(child));
  return {};
}

Result<void> make_directories(const std::string& mount, const std::string& name, mode_t mode) {
  std::string path = mount;
  for (std::string_view part : split(name, '/')) {
    path += fmt::format("/{}", part);
    if (::mkdir(path.c_str(), mode) != 0 && errno != EEXIST)
      return os_error(fmt::format("mkdir({})", path));
  }
  return {};
}

// Passes those v2 controllers that we use from each directory on the way to `name` to its children.
Result<void> delegate(const CgroupHierarchy& v2, const std::string& name) {
  std::string path = v2.mount;
  for (std::string_view part : split(name, '/')) {
    std::string available = TRY(read_file(path + "/cgroup.controllers"));
    std::string control = path + "/cgroup.subtree_control";
    for (std::string_view controller : {"cpu", "memory"}) {
      bool offered = false;
      for (std::string_view word : split(available, ' '))
        offered |= word == controller || word == fmt::format("{}\n", controller);
      if (offered)
        TRY(write_file(control, fmt::format("+{}", controller)).with("pass on a controller"));
    }
    path += fmt::format("/{}", part);
  }
  return {};
}

// False: something in it is still busy.
Result<bool> remove_tree(const std::string& directory) {
  for (const std::string& child : TRY(children_of(directory)))
    if (!TRY(remove_tree(child))) return false;
  if (::rmdir(directory.c_str()) == 0 || errno == ENOENT) return true;
  if (errno == EBUSY) return false;
  return os_error(fmt::format("rmdir({})", directory));
}

}  // namespace

bool CgroupHierarchy::has(std::string_view controller) const {
  return std::find(controllers.begin(), controllers.end(), controller) != controllers.end();
}

Result<std::vector<CgroupHierarchy>> mounted_cgroups() {
  std::string info = TRY(read_file("/proc/self/mountinfo"));
  std::vector<CgroupHierarchy> found;
  for (std::string_view line : split(info, '\n')) {
    // ID PARENT MAJ:MIN ROOT MOUNTPOINT OPTIONS [TAGS] - TYPE SOURCE SUPEROPTIONS
    std::size_t dash = line.find(" - ");
    if (dash == std::string_view::npos) continue;
    std::vector<std::string_view> left = split(line.substr(0, dash), ' ');
    std::vector<std::string_view> right = split(line.substr(dash + 3), ' ');
    if (left.size() < 6 || right.size() < 3) continue;
    if (right[0] != "cgroup" && right[0] != "cgroup2") continue;
    CgroupHierarchy hierarchy;
    hierarchy.mount = unescape(left[4]);
    hierarchy.v2 = right[0] == "cgroup2";
    // What a later mount hides has another or no group in it.
    if (!exists(hierarchy.mount + "/cgroup.procs")) continue;
    if (hierarchy.v2) {
      std::string controllers = TRY(read_file(hierarchy.mount + "/cgroup.controllers"));
      for (std::string_view word : split(controllers, ' ')) {
        if (word.ends_with('\n')) word.remove_suffix(1);
        if (!word.empty()) hierarchy.controllers.emplace_back(word);
      }
    } else {
      for (std::string_view word : split(right[2], ','))
        if (is_controller(word)) hierarchy.controllers.emplace_back(word);
    }
    bool known = std::any_of(found.begin(), found.end(), [&](const CgroupHierarchy& other) {
      return other.v2 == hierarchy.v2 && (other.v2 || other.controllers == hierarchy.controllers);
    });
    if (!known) found.push_back(std::move(hierarchy));
  }
  std::stable_partition(found.begin(), found.end(), [](const CgroupHierarchy& h) { return h.v2; });
  return found;
}

namespace {
// v2 always; of v1 only what carries a controller that we use and that v2 doesn't offer.
Result<std::vector<CgroupHierarchy>> used_cgroups() {
  std::vector<CgroupHierarchy> used;
  bool v2 = false;
  for (CgroupHierarchy& hierarchy : TRY(mounted_cgroups())) {
    v2 |= hierarchy.v2;
    bool wanted = hierarchy.v2;
    for (std::string_view controller : wanted_controllers)
      wanted |= hierarchy.has(controller) && !(v2 && controller == "freezer");
    if (wanted) used.push_back(std::move(hierarchy));
  }
  if (used.empty()) return make_error(Errc::unsupported, "no cgroup hierarchy is mounted");
  return used;
}

Result<void> check_name(const std::string& name) {
  if (name.empty() || name.front() == '/' || name.find("..") != std::string::npos)
    return make_error(Errc::invalid, "cgroup name \"{}\"", name);
  return {};
}
}  // namespace

Result<CgroupGroup> CgroupGroup::create(const std::string& name) {
  TRY(check_name(name));
  std::vector<Place> places;
  for (CgroupHierarchy& hierarchy : TRY(used_cgroups())) {
    std::string phrase = fmt::format("create cgroup {} in {}", name, hierarchy.mount);
    TRY(make_directories(hierarchy.mount, name, 0755).with(phrase));
    if (hierarchy.v2) TRY(delegate(hierarchy, name).with(phrase));
    std::string path = fmt::format("{}/{}", hierarchy.mount, name);
    places.push_back({std::move(hierarchy), std::move(path)});
  }
  return CgroupGroup(name, std::move(places));
}

Result<CgroupGroup> CgroupGroup::open(const std::string& name) {
  TRY(check_name(name));
  std::vector<Place> places;
  for (CgroupHierarchy& hierarchy : TRY(used_cgroups())) {
    std::string path = fmt::format("{}/{}", hierarchy.mount, name);
    if (exists(path)) places.push_back({std::move(hierarchy), std::move(path)});
  }
  if (places.empty()) return make_error(Errc::not_found, "cgroup {} doesn't exist", name);
  return CgroupGroup(name, std::move(places));
}

Result<CgroupGroup> CgroupGroup::child(const std::string& name) const {
  TRY(check_name(name));
  std::string full = fmt::format("{}/{}", name_, name);
  std::vector<Place> places;
  for (const Place& place : places_) {
    std::string path = fmt::format("{}/{}", place.path, name);
    if (exists(path)) places.push_back({place.hierarchy, std::move(path)});
  }
  if (places.empty()) return make_error(Errc::not_found, "cgroup {} doesn't exist", full);
  return CgroupGroup(std::move(full), std::move(places));
}

const CgroupGroup::Place* CgroupGroup::with_controller(std::string_view controller) const {
  for (const Place& place : places_)
    if (place.hierarchy.has(controller)) return &place;
  return nullptr;
}

const CgroupGroup::Place* CgroupGroup::v2_place() const {
  for (const Place& place : places_)
    if (place.hierarchy.v2) return &place;
  return nullptr;
}

const CgroupGroup::Place* CgroupGroup::freezer_place() const {
  // cgroup.freeze is part of every v2 group since 5.2, no controller is needed.
  const Place* v2 = v2_place();
  if (v2 != nullptr && exists(v2->path + "/cgroup.freeze")) return v2;
  return with_controller("freezer");
}

Result<std::string> CgroupGroup::freezer_path() const {
  const Place* place = freezer_place();
  if (place == nullptr) return make_error(Errc::unsupported, "cgroup {}: no freezer", name_);
  return place->path;
}

bool CgroupGroup::freezer_v2() const {
  const Place* place = freezer_place();
  return place != nullptr && place->hierarchy.v2;
}

Result<void> CgroupGroup::add(pid_t pid) const {
  for (const Place& place : places_)
    TRY(write_file(place.path + "/cgroup.procs", fmt::format("{}", pid)));
  return {};
}

Result<void> CgroupGroup::freeze() const {
  const Place* place = freezer_place();
  if (place == nullptr) return make_error(Errc::unsupported, "freeze cgroup {}: no freezer", name_);
  if (place->hierarchy.v2) {
    TRY(write_file(place->path + "/cgroup.freeze", "1"));
  } else {
    TRY(write_file(place->path + "/freezer.state", "FROZEN"));
  }
  return wait_until(freeze_us_max, fmt::format("freeze cgroup {}", name_),
                    [&] { return is_frozen(); });
}

Result<void> CgroupGroup::thaw() const {
  const Place* place = freezer_place();
  if (place == nullptr) return make_error(Errc::unsupported, "thaw cgroup {}: no freezer", name_);
  if (!place->hierarchy.v2) return thaw_v1(place->path);
  TRY(write_file(place->path + "/cgroup.freeze", "0"));
  return wait_until(freeze_us_max, fmt::format("thaw cgroup {}", name_),
                    [&]() -> Result<bool> { return !TRY(frozen_v2(place->path)); });
}

Result<bool> CgroupGroup::is_frozen() const {
  const Place* place = freezer_place();
  if (place == nullptr) return make_error(Errc::unsupported, "cgroup {}: no freezer", name_);
  if (place->hierarchy.v2) return frozen_v2(place->path);
  return TRY(read_file(place->path + "/freezer.state")) == "FROZEN\n";
}

Result<bool> CgroupGroup::is_held() const {
  const Place* place = freezer_place();
  if (place == nullptr) return make_error(Errc::unsupported, "cgroup {}: no freezer", name_);
  if (place->hierarchy.v2) return TRY(read_file(place->path + "/cgroup.freeze")) == "1\n";
  return TRY(read_file(place->path + "/freezer.state")) != "THAWED\n";
}

Result<void> CgroupGroup::set_cpu_quota(double cores) const {
  const Place* place = with_controller("cpu");
  if (place == nullptr) return make_error(Errc::unsupported, "cgroup {}: no cpu controller", name_);
  auto quota_us = static_cast<std::int64_t>(cores * static_cast<double>(cfs_period_us));
  if (cores > 0) quota_us = std::max<std::int64_t>(quota_us, 1000);  // The kernel's least.
  if (place->hierarchy.v2) {
    std::string quota = cores > 0 ? fmt::format("{}", quota_us) : "max";
    return write_file(place->path + "/cpu.max", fmt::format("{} {}", quota, cfs_period_us));
  }
  TRY(write_file(place->path + "/cpu.cfs_period_us", fmt::format("{}", cfs_period_us)));
  return write_file(place->path + "/cpu.cfs_quota_us",
                    fmt::format("{}", cores > 0 ? quota_us : -1));
}

Result<void> CgroupGroup::hurry(bool on) const {
  const Place* place = with_controller("cpu");
  if (place == nullptr) return make_error(Errc::unsupported, "cgroup {}: no cpu controller", name_);
  if (place->hierarchy.v2) return write_file(place->path + "/cpu.weight", on ? "10000" : "100");
  return write_file(place->path + "/cpu.shares", on ? "262144" : "1024");
}

Result<void> CgroupGroup::set_memory_limit(std::uint64_t bytes) const {
  const Place* place = with_controller("memory");
  if (place == nullptr)
    return make_error(Errc::unsupported, "cgroup {}: no memory controller", name_);
  if (place->hierarchy.v2)
    return write_file(place->path + "/memory.max", bytes > 0 ? fmt::format("{}", bytes) : "max");
  return write_file(place->path + "/memory.limit_in_bytes",
                    bytes > 0 ? fmt::format("{}", bytes) : "-1");
}

Result<std::uint64_t> CgroupGroup::memory_usage_bytes() const {
  const Place* place = with_controller("memory");
  if (place == nullptr)
    return make_error(Errc::unsupported, "cgroup {}: no memory controller", name_);
  std::string path =
      place->path + (place->hierarchy.v2 ? "/memory.current" : "/memory.usage_in_bytes");
  const auto used = TRY(parse_number<std::uint64_t>(TRY(read_file(path)), path));
  const auto cached = TRY(keyed_number(
      place->path + "/memory.stat", place->hierarchy.v2 ? "inactive_file" : "total_inactive_file"));
  return used - std::min(used, cached);
}

Result<std::uint64_t> CgroupGroup::cpu_usage_us() const {
  // v2 counts it in every group, with or without the cpu controller.
  if (const Place* v2 = v2_place()) return keyed_number(v2->path + "/cpu.stat", "usage_usec");
  const Place* place = with_controller("cpuacct");
  if (place == nullptr)
    return make_error(Errc::unsupported, "cgroup {}: no cpuacct controller", name_);
  std::string path = place->path + "/cpuacct.usage";
  return TRY(parse_number<std::uint64_t>(TRY(read_file(path)), path)) / 1000;
}

Result<std::vector<pid_t>> CgroupGroup::members(bool everywhere) const {
  std::vector<pid_t> out;
  const Place* freezer = everywhere ? nullptr : freezer_place();
  for (const Place& place : places_)
    if (freezer == nullptr || freezer == &place) TRY(collect_pids(place.path, out));
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

Result<std::vector<pid_t>> CgroupGroup::pids() const { return members(false); }

Result<void> CgroupGroup::kill_all() const { return kill_members(false); }

Result<void> CgroupGroup::kill_members(bool everywhere) const {
  return wait_until(kill_us_max, fmt::format("kill cgroup {}", name_), [&]() -> Result<bool> {
    std::vector<pid_t> members = TRY(this->members(everywhere));
    // 0 is a process that our PID namespace doesn't contain: only cgroup.kill reaches it.
    if (members.empty()) return true;
    for (const Place& place : places_) {
      if (place.hierarchy.v2 && exists(place.path + "/cgroup.kill")) {
        Result<void> killed = write_file(place.path + "/cgroup.kill", "1");
        if (!killed.ok() && !is_gone(killed.error())) return std::move(killed).error();
      }
    }
    for (pid_t pid : members)
      if (pid > 0 && ::kill(pid, SIGKILL) != 0 && errno != ESRCH)
        return os_error(fmt::format("kill({})", pid));
    // v1: what is frozen dies when thawed; it has SIGKILL pending, so nothing of it runs.
    for (const Place& place : places_) {
      if (place.hierarchy.v2 || !place.hierarchy.has("freezer")) continue;
      TRY(thaw_all_v1(place.path));
    }
    return false;
  });
}

Result<void> CgroupGroup::remove(const std::string& name) {
  Result<CgroupGroup> group = open(name);
  if (!group.ok()) {
    if (group.error().code() == Errc::not_found) return {};
    return std::move(group).error();
  }
  // A process that was about to enter may have done so since it was empty, and one that is dead
  // keeps its group busy for a moment: kill and try again. Once the directories are gone nobody
  // gets in.
  return wait_until(kill_us_max, fmt::format("remove cgroup {}", name), [&]() -> Result<bool> {
    // A crash between two hierarchies leaves processes in one of them only: look at all.
    TRY(group->kill_members(true));
    bool removed = true;
    for (const Place& place : group->places_) removed &= TRY(remove_tree(place.path));
    return removed;
  });
}

}  // namespace godwit::sys
