#include "local/pki.h"

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>

#include <functional>

namespace godwit::local {
namespace {

constexpr long slack_s = 24 * 3600;  // Clocks of nodes may differ.
constexpr long lifetime_s = 10L * 365 * 24 * 3600;

template <typename T, void (*release)(T*)>
struct Releaser {
  void operator()(T* what) const { release(what); }
};
using Key = std::unique_ptr<EVP_PKEY, Releaser<EVP_PKEY, EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Releaser<X509, X509_free>>;
using Extension = std::unique_ptr<X509_EXTENSION, Releaser<X509_EXTENSION, X509_EXTENSION_free>>;
using Bio = std::unique_ptr<BIO, Releaser<BIO, BIO_free_all>>;

Error library_error(const char* call) {
  char text[256] = "no reason given";
  if (unsigned long code = ERR_get_error()) ERR_error_string_n(code, text, sizeof(text));
  ERR_clear_error();
  return make_error(Errc::internal, "{}: {}", call, text);
}

Result<std::string> pem(const std::function<int(BIO*)>& write) {
  Bio bio(BIO_new(BIO_s_mem()));
  if (!bio || write(bio.get()) != 1) return library_error("PEM_write_bio");
  char* data = nullptr;
  long size = BIO_get_mem_data(bio.get(), &data);
  return std::string(data, static_cast<std::size_t>(size));
}

Result<Key> new_key() {
  Key key(EVP_EC_gen("P-256"));
  if (!key) return library_error("EVP_EC_gen(P-256)");
  return key;
}

Result<void> extend(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  Extension extension(X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
  if (!extension || X509_add_ext(certificate, extension.get(), -1) != 1)
    return library_error("X509_add_ext");
  return {};
}

Result<void> set_common_name(X509_NAME* name, const std::string& text) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
  if (X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8, bytes, static_cast<int>(text.size()),
                                 -1, 0) != 1)
    return library_error("X509_NAME_add_entry_by_txt");
  return {};
}

// Everything but issuer, extensions and signature.
Result<Certificate> blank(const std::string& common_name, EVP_PKEY* key) {
  Certificate certificate(X509_new());
  if (!certificate || X509_set_version(certificate.get(), X509_VERSION_3) != 1)
    return library_error("X509_new");
  std::uint64_t serial = 0;
  if (RAND_bytes(reinterpret_cast<unsigned char*>(&serial), sizeof(serial)) != 1)
    return library_error("RAND_bytes");
  if (ASN1_INTEGER_set_uint64(X509_get_serialNumber(certificate.get()), serial >> 1) != 1 ||
      X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -slack_s) == nullptr ||
      X509_gmtime_adj(X509_getm_notAfter(certificate.get()), lifetime_s) == nullptr ||
      X509_set_pubkey(certificate.get(), key) != 1)
    return library_error("fill certificate");
  TRY(set_common_name(X509_get_subject_name(certificate.get()), common_name));
  return certificate;
}

}  // namespace

struct Authority::Parts {
  Key key;
  Certificate certificate;
  std::string pem;
};

Authority::Authority(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Authority::Authority(Authority&&) noexcept = default;
Authority::~Authority() = default;
std::string Authority::certificate() const { return parts_->pem; }

Result<Authority> Authority::create(const std::string& cluster) {
  auto parts = std::make_unique<Parts>();
  parts->key = TRY(new_key());
  parts->certificate = TRY(blank("godwit cluster " + cluster, parts->key.get()));
  X509* self = parts->certificate.get();
  if (X509_set_issuer_name(self, X509_get_subject_name(self)) != 1)
    return library_error("X509_set_issuer_name");
  TRY(extend(self, self, NID_basic_constraints, "critical,CA:TRUE,pathlen:0"));
  TRY(extend(self, self, NID_key_usage, "critical,keyCertSign,cRLSign"));
  TRY(extend(self, self, NID_subject_key_identifier, "hash"));
  if (X509_sign(self, parts->key.get(), EVP_sha256()) == 0) return library_error("X509_sign");
  parts->pem = TRY(pem([&](BIO* bio) { return PEM_write_bio_X509(bio, self); }));
  return Authority(std::move(parts));
}

Result<Credentials> Authority::issue(const std::string& node, const std::string& address) const {
  Key key = TRY(new_key());
  Certificate certificate = TRY(blank(node, key.get()));
  X509* issuer = parts_->certificate.get();
  if (X509_set_issuer_name(certificate.get(), X509_get_subject_name(issuer)) != 1)
    return library_error("X509_set_issuer_name");
  TRY(extend(certificate.get(), issuer, NID_basic_constraints, "critical,CA:FALSE"));
  TRY(extend(certificate.get(), issuer, NID_key_usage, "critical,digitalSignature"));
  TRY(extend(certificate.get(), issuer, NID_ext_key_usage, "serverAuth,clientAuth"));
  TRY(extend(certificate.get(), issuer, NID_subject_alt_name,
             fmt::format("DNS:{},IP:{}", node, address)));
  TRY(extend(certificate.get(), issuer, NID_authority_key_identifier, "keyid"));
  if (X509_sign(certificate.get(), parts_->key.get(), EVP_sha256()) == 0)
    return library_error("X509_sign");
  Credentials made;
  made.certificate = TRY(pem([&](BIO* bio) { return PEM_write_bio_X509(bio, certificate.get()); }));
  made.key = TRY(pem([&](BIO* bio) {
    return PEM_write_bio_PrivateKey(bio, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
  }));
  return made;
}

}  // namespace godwit::local
