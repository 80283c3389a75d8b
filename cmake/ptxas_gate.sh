#!/bin/sh
# Runs a CUDA compile command and fails it when ptxas reports a silent loss of speed.
log=$(mktemp)
"$@" 2>"$log"
status=$?
cat "$log" >&2
if grep -qiE "serialized|setmaxnreg.*ignored|ignoring.*setmaxnreg|C7508|C7510" "$log"; then
  echo "error: ptxas gave up on asynchronous wgmma or on setmaxnreg (see above)" >&2
  status=1
fi
rm -f "$log"
exit $status
