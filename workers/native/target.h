// From here to the end of the file, functions may use the instruction sets of STAFETTE_TARGET.
//
// setuptools compiles all files with the same flags. What follows the inclusion must keep to
// anonymous namespaces: a shared inline function compiled here could end up in a generic path.
#define STAFETTE_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define STAFETTE_APPLY(sets) \
  STAFETTE_PRAGMA(clang attribute push(__attribute__((target(sets))), apply_to = function))
#else
#define STAFETTE_APPLY(sets) STAFETTE_PRAGMA(GCC target(sets))
#endif
STAFETTE_APPLY(STAFETTE_TARGET)
