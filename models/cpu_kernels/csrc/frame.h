// XLA's call frames: checks operands, results and attributes, and returns errors to XLA.

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

#define INLINE static inline __attribute__((always_inline))
typedef int64_t i64;

// Creates an error, which XLA destroys and JAX raises as an exception. The message begins with the kernel's name, taken
// from `signature`.
__attribute__((format(printf, 4, 5)))
static XLA_FFI_Error *failure(XLA_FFI_CallFrame *frame, const char *signature, XLA_FFI_Error_Code code,
                              const char *format, ...) {
  char message[512];
  int used = snprintf(message, sizeof message, "%.*s: ", (int)strcspn(signature, "("), signature);
  va_list values;
  va_start(values, format);
  vsnprintf(message + used, sizeof message - used, format, values);
  va_end(values);
  XLA_FFI_Error_Create_Args create = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, NULL, message, code};
  return frame->api->XLA_FFI_Error_Create(&create);
}

#define INVALID XLA_FFI_Error_Code_INVALID_ARGUMENT

static XLA_FFI_Error *out_of_memory(XLA_FFI_CallFrame *frame, i64 floats) {
  return failure(frame, "CPU kernel", XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "no memory for a buffer of %lld bytes",
                 4 * (long long)floats);
}

// XLA asks every function once for the API version that it was compiled with.
static int is_metadata_request(XLA_FFI_CallFrame *frame) {
  if (!frame->extension_start || frame->extension_start->type != XLA_FFI_Extension_Metadata) return 0;
  XLA_FFI_Metadata *metadata = ((XLA_FFI_Metadata_Extension *)frame->extension_start)->metadata;
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  metadata->traits = 0;
  return 1;
}

INLINE const XLA_FFI_Buffer *operand(XLA_FFI_CallFrame *frame, int n) { return frame->args.args[n]; }
INLINE const XLA_FFI_Buffer *result(XLA_FFI_CallFrame *frame, int n) { return frame->rets.rets[n]; }

// ---- Shapes ----

typedef struct {
  const char *signature;  // The signature of the kernel.
  i64 of['z' + 1];        // The dimensions, indexed by their letter in the signature. 0: not known yet.
} Sizes;

static const char *type_name(XLA_FFI_DataType type) {
  switch (type) {
    case XLA_FFI_DataType_PRED: return "bool";
    case XLA_FFI_DataType_S32: return "int32";
    case XLA_FFI_DataType_S64: return "int64";
    case XLA_FFI_DataType_U8: return "uint8";
    case XLA_FFI_DataType_F16: return "float16";
    case XLA_FFI_DataType_F32: return "float32";
    case XLA_FFI_DataType_F64: return "float64";
    case XLA_FFI_DataType_BF16: return "bfloat16";
    default: return "another type";
  }
}

// Writes a description such as "float32[2,3]".
static void describe_array(char *to, size_t room, const XLA_FFI_Buffer *array) {
  size_t used = snprintf(to, room, "%s[", type_name(array->dtype));
  for (i64 n = 0; n < array->rank && used < room; n++)
    used += snprintf(to + used, room - used, n ? ",%lld" : "%lld", (long long)array->dims[n]);
  if (used < room) snprintf(to + used, room - used, "]");
}

// Returns whether `array` is float32 and has the dimensions `letters`, for example "2,C]". Stores sizes that were not
// known yet.
static int fits(const XLA_FFI_Buffer *array, const char *letters, Sizes *sizes) {
  if (array->dtype != XLA_FFI_DataType_F32) return 0;
  i64 n = 0;
  for (; *letters != ']'; letters++) {
    if (*letters == ',') continue;
    if (n == array->rank || array->dims[n] < 1) return 0;
    i64 *known = &sizes->of[(int)*letters], expected = *letters <= '9' ? *letters - '0' : *known;
    if (expected && array->dims[n] != expected) return 0;
    *known = array->dims[n++];
  }
  return n == array->rank;
}

// Checks the arrays of a call against the kernel's signature, for example "f(x[A,B], y[2,B]?) -> z[A]", and determines
// the sizes of the dimensions. A letter is a dimension, which has the same size wherever it occurs; a digit is a size;
// an array with a question mark is optional. All arrays are float32 and nonempty. P is the number of channels in
// memory; a kernel uses the first C of them.
static XLA_FFI_Error *check_arrays(XLA_FFI_CallFrame *frame, const char *signature, Sizes *sizes) {
  *sizes = (Sizes){.signature = signature};
  const char *at = strchr(signature, '('), *end = strchr(signature, ')');
  i64 operands = 0, results = 0;
  for (at++; *at; at += strspn(at, "?,)-> ")) {
    const char *open = strchr(at, '['), *close = strchr(open, ']');
    int is_operand = at < end;
    i64 given = is_operand ? frame->args.size : frame->rets.size, n = is_operand ? operands : results;
    if (n < given) {
      const XLA_FFI_Buffer *array = is_operand ? operand(frame, n) : result(frame, n);
      Sizes before = *sizes;
      if (!fits(array, open + 1, sizes)) {
        char found[128], known[64] = "";
        describe_array(found, sizeof found, array);
        for (const char *c = open; c < close; c++) {
          size_t used = strlen(known);
          if (before.of[(int)*c] && *c >= 'A')
            snprintf(known + used, sizeof known - used, " %s%c=%lld", used ? "" : "with ", *c,
                     (long long)before.of[(int)*c]);
        }
        return failure(frame, signature, INVALID, "%.*s must be a nonempty float32%.*s%s, not %s, in %s",
                       (int)(open - at), at, (int)(close + 1 - open), open, known, found, signature);
      }
    } else if (close[1] != '?') {
      break;
    } else {
      at = close + 1;
      continue;
    }
    *(is_operand ? &operands : &results) += 1;
    at = close + 1;
  }
  if (*at || operands != frame->args.size || results != frame->rets.size)
    return failure(frame, signature, INVALID, "got %lld operands and %lld results for %s",
                   (long long)frame->args.size, (long long)frame->rets.size, signature);
  if (sizes->of['P'] && sizes->of['C'] > sizes->of['P'])
    return failure(frame, signature, INVALID, "C must be at most P=%lld, not %lld, in %s",
                   (long long)sizes->of['P'], (long long)sizes->of['C'], signature);
  return NULL;
}

// ---- Attributes ----

// Returns the index of the attribute `name` if its type is `type`, otherwise -1.
static i64 find_attribute(XLA_FFI_CallFrame *frame, const char *name, XLA_FFI_AttrType type) {
  for (i64 n = 0; n < frame->attrs.size; n++) {
    const XLA_FFI_ByteSpan *found = frame->attrs.names[n];
    if (found->len == strlen(name) && !memcmp(found->ptr, name, found->len))
      return frame->attrs.types[n] == type ? n : -1;
  }
  return -1;
}

// Reads the float32 attribute `name`.
static XLA_FFI_Error *read_number(XLA_FFI_CallFrame *frame, const Sizes *sizes, const char *name, float *number) {
  i64 n = find_attribute(frame, name, XLA_FFI_AttrType_SCALAR);
  const XLA_FFI_Scalar *scalar = n < 0 ? NULL : frame->attrs.attrs[n];
  if (!scalar || scalar->dtype != XLA_FFI_DataType_F32)
    return failure(frame, sizes->signature, INVALID, "the attribute %s must be a float32 number", name);
  *number = *(const float *)scalar->value;
  return NULL;
}

// Reads the attribute `name`, an array of `count` int64 numbers.
static XLA_FFI_Error *read_integers(XLA_FFI_CallFrame *frame, const Sizes *sizes, const char *name, i64 count,
                                    const i64 **numbers) {
  i64 n = find_attribute(frame, name, XLA_FFI_AttrType_ARRAY);
  const XLA_FFI_Array *array = n < 0 ? NULL : frame->attrs.attrs[n];
  if (!array || array->dtype != XLA_FFI_DataType_S64 || (i64)array->size != count)
    return failure(frame, sizes->signature, INVALID, "the attribute %s must be an array of %lld int64 numbers", name,
                   (long long)count);
  *numbers = array->data;
  return NULL;
}
