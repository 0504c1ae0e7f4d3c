"""The mount's README, made from the tables that the parser uses."""

from collections.abc import Sequence

from ttmfs.fs.commands.objects_and_ctl import CTL_COMMANDS, OBJECT_COMMANDS
from ttmfs.fs.commands.spaces import SPACE_COMMANDS
from ttmfs.fs.commands.vms import VM_COMMANDS
from ttmfs.fs.tree.attributes import SETTABLE
from ttmfs.fs.tree.spaces import READ_FILES

_HEAD = """\
This is a ttmfs mount: the Linux kernel's TTM in user space. Every file below bo/ is a buffer object (BO).

  truncate -s 64M bo/tex0             make a BO (creating and writing does too); unlink destroys it
  echo "vram gtt" > objects/tex0/validate    move it; the write fails with an errno when TTM does
  cat objects/tex0/status             where it is and what happened to it
  cat error_log                       why the last commands failed

Any program may read, write and mmap bo/ files; a page-cache miss is a fault that goes through TTM. Opened O_RDWR, a
command file gives its result back as one JSON line: exec 3<>FILE; echo ARGUMENTS >&3; cat <&3
Words follow the shell's quoting; \\040 is a space, \\054 a comma in a name, and tables print names so. Sizes take K, M,
G, T.

"""


def readme(regions: Sequence[str]) -> str:
    """The whole text."""
    parts = [_HEAD, f"Regions of this device: {' '.join(regions)}\n", "\nobjects/NAME/…\n"]
    parts += [_indented(command.help(f"objects/tex0/{name}")) for name, command in OBJECT_COMMANDS.items()]
    parts.append(f"  attributes, read and written: {' '.join(SETTABLE)}; read: status status.json snapshot\n")
    parts.append("  peek: its bytes where they are, read and written; nothing moves for it\n")
    parts.append(
        "\nsvm_objects/NAME/…   svm/NAME is an address space (offset = address) that processes and the device share\n"
        "  truncate -s 1G svm/heap             make one; unlink destroys it\n"
    )
    parts += [_indented(command.help(f"svm_objects/heap/{name}")) for name, command in SPACE_COMMANDS.items()]
    parts.append(f"  read: {' '.join(READ_FILES)}\n")
    parts.append("\nvm/NAME/…   a VM: addresses of the device at which BOs are bound\n")
    parts.append("  mkdir vm/game                       make one; rmdir removes it\n")
    parts.append("  echo game > objects/tex0/vm         before its first use: the BO is local to it\n")
    parts += [_indented(command.help(f"vm/game/{name}")) for name, command in VM_COMMANDS.items()]
    parts.append("  allow_res_evict 0|1   read: maps bos stats\n")
    parts.append("\nctl/…\n")
    parts += [_indented(command.help(f"ctl/{name}")) for name, command in CTL_COMMANDS.items()]
    parts.append(
        "  config KEY=VALUE (reading lists the keys), trace EVENT… [bo=NAME] | all | off, selfcheck (read)\n"
        "\nregions/NAME/{size,used,visible_size,visible_used,usage,lru,debug,fences,map}\n"
        "regions/system/fragmentation\n"
        "pool/{pages,fragmentation}  swap/{store,size,used,pages,ratio}\n"
        "policies/evict [GROUP:]REGION NAME [KEY=VALUE…], policies/{prefetch,promote} NAME [KEY=VALUE…]\n"
        "  NAME is one of policies/available, module:Class or /PATH.py:Class; policies/stats\n"
        "groups/ (the dmem controller): mkdir makes one; dmem.{max,low,min} REGION BYTES|max, cgroup.procs PID\n"
        "fences/{timelines,pending}  stats (JSON)  metrics (OpenMetrics)  error_log  options (TOML)\n"
        "trace  trace.json  trace_pipe (consuming, blocks, can be polled): what ctl/trace asked for\n"
        "clients/{PID,uid-N,kernel} (drm fdinfo)  mem_info_{vram,vis_vram,gtt}_{total,used}\n"
        "debug/{vram,system_mm,gtt_mm,vram0_mm,gem_info,loop,pause_engine,ban_memcpy,ban_exchange,fail_*/}\n"
        "debug/recorder (always): what happened to BOs, for whom, and who had asked\n"
        "debug/ttm/{buffer_objects,page_pool}; page_pool_shrink, tt_shrink: write to run one, read what it came to\n"
    )
    return "".join(parts)


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
