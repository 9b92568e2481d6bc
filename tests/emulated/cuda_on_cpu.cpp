// A device `cuda` for builds of torch without CUDA. Its memory is the host's and its kernels are those of the CPU.
//
// Tensors on it are ordinary tensors with the dispatch key CUDA, so that autograd, functorch, make_fx, views, storages
// and optimizers treat them as they treat a GPU's. What real CUDA refuses is refused (tensors on two devices, a CPU
// generator, synchronisation while a graph is captured), and what makes the host wait is reported to `listener`.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

const c10::Device GPU(c10::DeviceType::CUDA, 0);
using c10::IValue;
using Listener = void (*)(const char* what, const char* operation);

Listener listener = nullptr;
std::atomic<bool> capturing{false};
std::atomic<int64_t> held_bytes{0}, peak_bytes{0};

void note(const char* what, const std::string& operation) {
  if (listener) listener(what, operation.c_str());
}

void makes_host_wait(const char* what, const std::string& operation) {
  note(what, operation);
  TORCH_CHECK(!capturing, "CUDA error: operation not permitted when stream is capturing (", operation, ")");
}

// ---- memory: the host's, counted ------------------------------------------------------------------------------------

struct Held {
  c10::Storage storage;
  int64_t bytes;
};

void release(void* context) {
  auto* held = static_cast<Held*>(context);
  held_bytes -= held->bytes;
  delete held;
}

c10::DataPtr on_device(c10::Storage host) {
  auto bytes = static_cast<int64_t>(host.nbytes());
  int64_t now = held_bytes += bytes, before = peak_bytes;
  while (now > before && !peak_bytes.compare_exchange_weak(before, now)) {}
  void* data = host.mutable_data();
  return {data, new Held{std::move(host), bytes}, &release, GPU};
}

c10::Storage host_storage(size_t bytes) {
  return c10::Storage(c10::Storage::use_byte_size_t(), bytes, c10::GetCPUAllocator(), true);
}

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override { return on_device(host_storage(bytes)); }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
DeviceAllocator device_allocator;

std::mutex pinned_lock;
std::set<const void*> pinned;

void unpin(void* context) {
  auto* storage = static_cast<c10::Storage*>(context);
  {
    std::lock_guard<std::mutex> guard(pinned_lock);
    pinned.erase(storage->data());
  }
  delete storage;
}

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto* storage = new c10::Storage(host_storage(bytes));
    std::lock_guard<std::mutex> guard(pinned_lock);
    pinned.insert(storage->data());
    return {storage->mutable_data(), storage, &unpin, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &unpin; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
PinnedAllocator pinned_allocator;

bool is_pinned(const void* data) {
  std::lock_guard<std::mutex> guard(pinned_lock);
  return pinned.count(data) > 0;
}

// ---- random numbers: a stream of the device's own, which draws what the CPU's would from the same seed --------------

struct DeviceGenerator final : c10::GeneratorImpl {
  at::Generator inner;

  explicit DeviceGenerator(uint64_t seed = c10::detail::getNonDeterministicRandom())
      : c10::GeneratorImpl(GPU, c10::DispatchKeySet(c10::DispatchKey::CUDA)),
        inner(at::detail::createCPUGenerator(seed)) {}
  void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { inner.set_offset(offset); }
  uint64_t get_offset() const override { return inner.get_offset(); }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return const_cast<at::Generator&>(inner).seed(); }
  void set_state(const c10::TensorImpl& state) override { inner.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return inner.unsafeGetGeneratorImpl()->get_state(); }
  DeviceGenerator* clone_impl() const override {
    auto* copy = new DeviceGenerator();
    copy->inner = inner.clone();
    return copy;
  }
};

const at::Generator& default_generator() {
  static const at::Generator standard = at::make_generator<DeviceGenerator>(c10::default_rng_seed_val);
  return standard;
}

// ---- what torch asks of a device besides its kernels ----------------------------------------------------------------

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  Guard() = default;
  explicit Guard(c10::DeviceType) {}
  c10::Device getDevice() const override { return GPU; }
  c10::Device exchangeDevice(c10::Device) const override { return GPU; }
  c10::Stream getStream(c10::Device) const noexcept { return c10::Stream(c10::Stream::DEFAULT, GPU); }
  c10::Stream exchangeStream(c10::Stream) const noexcept { return c10::Stream(c10::Stream::DEFAULT, GPU); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};

// No `override` below: the interface's signatures differ between releases of torch.
struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const {}
  bool hasCUDA() const { return true; }
  bool isBuilt() const { return true; }
  bool isAvailable() const { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const { return true; }
  c10::DeviceIndex deviceCount() const { return 1; }
  c10::DeviceIndex getCurrentDevice() const { return 0; }
  c10::DeviceIndex current_device() const { return 0; }
  int getNumGPUs() const { return 1; }
  void deviceSynchronize(c10::DeviceIndex) const {}
  c10::Device getDeviceFromPtr(void*) const { return GPU; }
  c10::Allocator* getPinnedMemoryAllocator() const { return &pinned_allocator; }
  c10::Allocator* getCUDADeviceAllocator() const { return &device_allocator; }
  bool isPinnedPtr(const void* data) const { return is_pinned(data); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const { return default_generator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const {
    static std::atomic<bool> first{true};  // Python has no other way to the default generator of a device
    return first.exchange(false) ? default_generator() : at::make_generator<DeviceGenerator>();
  }
};

// ---- kernels: any operation, on the same memory, by the CPU's -------------------------------------------------------

// They make the host wait for the device on real CUDA: it must know a size, a value or whether an algorithm succeeded.
const std::set<std::string> WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique", "aten::_unique2",
    "aten::unique_dim", "aten::unique_consecutive", "aten::unique_dim_consecutive", "aten::equal", "aten::bincount",
    "aten::multinomial", "aten::_linalg_svd", "aten::_linalg_eigh", "aten::linalg_eig", "aten::_linalg_eigvals",
    "aten::linalg_lstsq", "aten::_ctc_loss", "aten::embedding_renorm_"};
const std::set<std::string> INDEXING = {
    "aten::index", "aten::_unsafe_index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_",
    "aten::_unsafe_index_put"};
// They take a CPU tensor without dimensions as a number, like all that torch tags as pointwise.
const std::set<std::string> TAKE_NUMBERS = {
    "aten::fill_", "aten::fill", "aten::masked_fill", "aten::masked_fill_", "aten::index_fill", "aten::index_fill_",
    "aten::where", "aten::lerp", "aten::lerp_", "aten::clamp", "aten::clamp_", "aten::floor_divide",
    "aten::floor_divide_"};
const std::set<std::string> BETWEEN_DEVICES = {"aten::copy_", "aten::set_"};

bool is_boolean(const at::Tensor& t) { return t.scalar_type() == at::kBool || t.scalar_type() == at::kByte; }

// One call of an operation: the CPU tensors that stand for the device's, and the way back.
class Call {
 public:
  explicit Call(const c10::OperatorHandle& op) : op_(op), name_(op.operator_name().name) {}

  IValue to_host(const IValue& value) {
    if (value.isTensor()) return host(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& t : value.toTensorVector()) list.push_back(host(t));
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& t : value.toOptionalTensorVector())
        list.push_back(t ? std::optional<at::Tensor>(host(*t)) : std::nullopt);
      return list;
    }
    if (value.isStorage()) return host(value.toStorage());
    if (value.isDevice()) return c10::Device(c10::DeviceType::CPU);
    return value;
  }

  IValue to_device(const IValue& value) {
    if (value.isTensor()) return device(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<at::Tensor> list;
    for (const at::Tensor& t : value.toTensorVector()) list.push_back(device(t));
    return list;
  }

  // What real CUDA would refuse, and what it would make the host wait for; from the arguments as they were given.
  void check(at::ArrayRef<IValue> arguments) {
    const bool indexing = INDEXING.count(name_) > 0;
    if (BETWEEN_DEVICES.count(name_)) {
      if (name_ == "aten::copy_") check_copy(arguments[0].toTensor(), arguments[1].toTensor(), arguments[2].toBool());
      return;
    }
    if (indexing) return check_indexing(arguments);
    const bool numbers = op_.hasTag(at::Tag::pointwise) || TAKE_NUMBERS.count(name_);
    for (const at::Tensor& t : on_cpu_)
      refuse_unless(t.dim() == 0 && (numbers || t.unsafeGetTensorImpl()->is_wrapped_number()));
    if (name_ == "aten::repeat_interleave" && arguments.back().isNone()) makes_host_wait("sync", name_);
    if (WAITING.count(name_)) makes_host_wait("sync", name_);
  }

  // After the call: what it resized or gave another storage.
  void finish() {
    for (auto& [impl, pair] : storages_) {
      auto& [given, stand_in] = pair;
      if (stand_in.data() != given.data()) {
        given.set_data_ptr(on_device(stand_in));
        given.set_nbytes(stand_in.nbytes());
      }
    }
    for (auto& [given, stand_in] : tensors_) {
      auto* impl = given.unsafeGetTensorImpl();
      if (stand_in.storage().unsafeGetStorageImpl() != storages_.at(given.storage().unsafeGetStorageImpl()).second.unsafeGetStorageImpl())
        impl->set_storage_keep_dtype(storage_of(stand_in.storage()));
      if (given.sizes() != stand_in.sizes() || given.strides() != stand_in.strides() ||
          given.storage_offset() != stand_in.storage_offset())
        impl->set_sizes_and_strides(stand_in.sizes(), stand_in.strides(), stand_in.storage_offset());
    }
  }

 private:
  at::Tensor host(const at::Tensor& t) {
    if (!t.defined()) return t;
    if (!t.is_cuda()) {
      on_cpu_.push_back(t);
      return t;
    }
    for (auto& [given, stand_in] : tensors_)
      if (given.is_same(t)) return stand_in;
    at::Tensor result = described(t, host(t.storage()), c10::DispatchKey::CPU);
    if (t.unsafeGetTensorImpl()->is_wrapped_number()) result.unsafeGetTensorImpl()->set_wrapped_number(true);
    tensors_.emplace_back(t, result);
    return result;
  }

  c10::Storage host(const c10::Storage& storage) {
    if (!storage.device().is_cuda()) return storage;
    auto found = storages_.find(storage.unsafeGetStorageImpl());
    if (found != storages_.end()) return found->second.second;
    void* data = const_cast<c10::Storage&>(storage).mutable_data();
    c10::Storage result(
        c10::Storage::use_byte_size_t(), storage.nbytes(), c10::DataPtr(data, c10::Device(c10::DeviceType::CPU)),
        c10::GetCPUAllocator(), true);
    storages_.emplace(storage.unsafeGetStorageImpl(), std::make_pair(storage, result));
    return result;
  }

  at::Tensor device(const at::Tensor& t) {
    if (!t.defined()) return t;
    for (auto& [given, stand_in] : tensors_)
      if (stand_in.is_same(t)) return given;
    for (const at::Tensor& given : on_cpu_)
      if (given.is_same(t)) return given;
    return described(t, storage_of(t.storage()), c10::DispatchKey::CUDA);
  }

  // The device's storage that a CPU one stands for; of a new one, the same memory on the device.
  c10::Storage storage_of(const c10::Storage& storage) {
    for (auto& [impl, pair] : storages_)
      if (pair.second.unsafeGetStorageImpl() == storage.unsafeGetStorageImpl()) return pair.first;
    c10::Storage result(
        c10::Storage::use_byte_size_t(), storage.nbytes(), on_device(storage), &device_allocator, true);
    storages_.emplace(result.unsafeGetStorageImpl(), std::make_pair(result, storage));
    return result;
  }

  static at::Tensor described(const at::Tensor& like, c10::Storage storage, c10::DispatchKey key) {
    at::Tensor result = at::detail::make_tensor<c10::TensorImpl>(
        std::move(storage), c10::DispatchKeySet(key), like.dtype());
    result.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
    if (like.is_conj()) result._set_conj(true);
    if (like.is_neg()) result._set_neg(true);
    return result;
  }

  void refuse_unless(bool allowed) const {
    TORCH_CHECK(
        allowed, "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (",
        name_, ")");
  }

  void check_copy(const at::Tensor& to, const at::Tensor& from, bool non_blocking) {
    if (to.is_cuda() == from.is_cuda()) return;
    const at::Tensor& on_host = to.is_cuda() ? from : to;
    const bool to_device = to.is_cuda(), async = non_blocking && is_pinned(on_host.storage().data());
    if (non_blocking) {
      note(to_device ? (async ? "to device, pinned" : "to device, unpinned") : "to host, unordered", name_);
      TORCH_CHECK(!capturing || async, "CUDA error: operation not permitted when stream is capturing (copy_)");
    } else {
      makes_host_wait(to_device ? "to device, waiting" : "to host, waiting", name_);
    }
  }

  void check_indexing(at::ArrayRef<IValue> arguments) {
    const at::Tensor& self = arguments[0].toTensor();
    size_t masks = 0, indices = 0;
    for (const std::optional<at::Tensor>& index : arguments[1].toOptionalTensorVector()) {
      if (!index || !index->defined()) continue;
      ++indices;
      TORCH_CHECK(
          index->device() == self.device() || index->device().is_cpu(),
          "indices should be either on cpu or on the same device as the indexed tensor (", self.device(), ")");
      if (is_boolean(*index)) ++masks;
      if (index->device() != self.device()) makes_host_wait("to device, waiting", name_);
    }
    if (name_.find("put") == std::string::npos) return;  // reading by a mask asks for its places by itself: aten::nonzero
    const at::Tensor& values = arguments[2].toTensor();
    refuse_unless(values.device() == self.device() || (values.device().is_cpu() && values.dim() == 0));
    const bool fills = masks == 1 && indices == 1 && values.numel() == 1;  // is done as masked_fill
    if (masks && !fills) makes_host_wait("sync", name_ + " by a mask");
  }

  const c10::OperatorHandle& op_;
  std::string name_;
  std::vector<std::pair<at::Tensor, at::Tensor>> tensors_;
  std::unordered_map<c10::StorageImpl*, std::pair<c10::Storage, c10::Storage>> storages_;
  std::vector<at::Tensor> on_cpu_;
};

// Lets an operation without a generator among its arguments draw from the device's stream.
class DeviceDraws {
 public:
  explicit DeviceDraws(bool needed) : needed_(needed) {
    if (needed_) exchange();
  }
  ~DeviceDraws() {
    if (needed_) exchange();
  }

 private:
  static void exchange() {
    at::Generator cpu = at::detail::getDefaultCPUGenerator(), gpu = default_generator();
    const at::Tensor mine = cpu.get_state(), theirs = gpu.get_state();
    cpu.set_state(theirs);
    gpu.set_state(mine);
  }
  bool needed_;
};

void by_the_cpu(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  at::AutoDispatchBelowADInplaceOrView below;
  const auto& schema = op.schema();
  const auto count = schema.arguments().size();
  const auto first = stack->size() - count;
  const std::vector<IValue> given(stack->end() - static_cast<int64_t>(count), stack->end());
  Call call(op);
  bool takes_generator = false;
  for (size_t i = 0; i < count; ++i) {
    IValue& value = (*stack)[first + i];
    const auto& type = schema.arguments()[i].type();
    if (type->str() == "Generator?" || type->str() == "Generator") {
      takes_generator = true;
      at::Generator generator = given[i].isNone() ? default_generator() : given[i].toGenerator();
      TORCH_CHECK(generator.device().is_cuda(), "Expected a 'cuda' device type for generator but found 'cpu'");
      value = static_cast<DeviceGenerator*>(generator.unsafeGetGeneratorImpl())->inner;
    } else {
      value = call.to_host(given[i]);
    }
  }
  call.check(given);
  const bool random = takes_generator || op.hasTag(at::Tag::nondeterministic_seeded);
  if (random) note("draw", op.operator_name().name);
  {
    DeviceDraws draws(random && !takes_generator);
    op.callBoxed(stack);
  }
  const auto results = schema.returns().size(), start = stack->size() - results;
  for (size_t i = 0; i < results; ++i) (*stack)[start + i] = call.to_device((*stack)[start + i]);
  call.finish();
}

at::Tensor empty(
    at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
    std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(
      size, &device_allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(
    at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(
      size, stride, &device_allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype));
}

int64_t plain_attention(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, double, bool,
    std::optional<double>, bool) {
  return 0;  // by matrix products: the fused kernels are the GPU's own
}

// ---- recurrent cells: fused kernels that only GPUs have (RNN.cu) ----------------------------------------------------

at::Tensor joined(const std::vector<at::Tensor>& gates) { return at::cat(gates, 1); }

at::Tensor plus(const at::Tensor& gates, const std::optional<at::Tensor>& bias) {
  return bias && bias->defined() ? gates + *bias : gates;
}

std::tuple<at::Tensor, at::Tensor> gru_cell(
    const at::Tensor& input, const at::Tensor& hidden, const at::Tensor& hx, const std::optional<at::Tensor>& bi,
    const std::optional<at::Tensor>& bh) {
  const auto i = plus(input, bi).chunk(3, 1), h = plus(hidden, bh).chunk(3, 1);
  const auto reset = at::sigmoid(i[0] + h[0]), update = at::sigmoid(i[1] + h[1]);
  const auto fresh = at::tanh(i[2] + reset * h[2]);
  return {fresh + update * (hx - fresh), joined({reset, update, fresh, hx, h[2]})};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> gru_cell_backward(
    const at::Tensor& grad, const at::Tensor& workspace, bool has_bias) {
  const auto w = workspace.chunk(5, 1);
  const auto &reset = w[0], &update = w[1], &fresh = w[2], &hx = w[3], &h = w[4];
  const auto to_fresh = grad * (1 - update) * (1 - fresh * fresh);
  const auto to_reset = to_fresh * h * (1 - reset) * reset;
  const auto to_update = grad * (hx - fresh) * (1 - update) * update;
  const auto input = joined({to_reset, to_update, to_fresh});
  const auto hidden = joined({to_reset, to_update, to_fresh * reset});
  const auto none = at::Tensor();
  return {input, hidden, grad * update, has_bias ? input.sum(0) : none, has_bias ? hidden.sum(0) : none};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell(
    const at::Tensor& input, const at::Tensor& hidden, const at::Tensor& cx, const std::optional<at::Tensor>& bi,
    const std::optional<at::Tensor>& bh) {
  const auto gates = (plus(input, bi) + plus(hidden, bh)).chunk(4, 1);
  const auto i = at::sigmoid(gates[0]), f = at::sigmoid(gates[1]), g = at::tanh(gates[2]), o = at::sigmoid(gates[3]);
  const auto cy = f * cx + i * g;
  return {o * at::tanh(cy), cy, joined({i, f, g, o})};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell_backward(
    const std::optional<at::Tensor>& grad_hy, const std::optional<at::Tensor>& grad_cy, const at::Tensor& cx,
    const at::Tensor& cy, const at::Tensor& workspace, bool has_bias) {
  const auto none = at::Tensor();
  const bool by_hy = grad_hy && grad_hy->defined(), by_cy = grad_cy && grad_cy->defined();
  if (!by_hy && !by_cy) return {none, none, none};
  const auto w = workspace.chunk(4, 1);
  const auto &i = w[0], &f = w[1], &g = w[2], &o = w[3];
  const auto hy = by_hy ? *grad_hy : at::zeros_like(cx), t = at::tanh(cy);
  auto to_cell = hy * o * (1 - t * t);
  if (by_cy) to_cell = to_cell + *grad_cy;
  const auto gates = joined(
      {to_cell * g * (1 - i) * i, to_cell * cx * (1 - f) * f, to_cell * i * (1 - g * g), hy * t * (1 - o) * o});
  return {gates, to_cell * f, has_bias ? gates.sum(0) : none};
}

}  // namespace

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
}
namespace at {
using CUDAEmulated = Hooks;
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, CUDAEmulated)
}  // namespace at

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  // Torch's own for every device would go to kernels of CUDA and cuDNN; or resizes its results and warns of it.
  for (const char* name : {"copy_", "convolution", "convolution_backward", "mse_loss"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>());
  m.impl("_fused_sdp_choice", plain_attention);
  m.impl("_thnn_fused_gru_cell", gru_cell);
  m.impl("_thnn_fused_gru_cell_backward", gru_cell_backward);
  m.impl("_thnn_fused_lstm_cell", lstm_cell);
  m.impl("_thnn_fused_lstm_cell_backward_impl", lstm_cell_backward);
}

extern "C" {
void emulated_listen(Listener to) { listener = to; }
void emulated_capture(int on) { capturing = on != 0; }
int64_t emulated_bytes(int peak) { return peak ? peak_bytes : held_bytes; }
void emulated_forget_peak() { peak_bytes = held_bytes.load(); }
}
