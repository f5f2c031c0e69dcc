// pid 1 of a sandbox; what it does and why is told in pid1.py. Assembled by
//     as -o pid1.o pid1_aarch64.S && objcopy -O binary -j .text pid1.o pid1.bin
// (on another machine aarch64-linux-gnu-as and -objcopy). The bytes of pid1.bin stand in pid1.py;
// tests/isolation/test_pid1.py compares them. As pid1_x86_64.S, line by line.
//
// No stack is used after the filter, which is read onto it, and then there is none: the command's process
// shares all memory until it executes.
// x19 BUFFER, x20 RESULT, x21 the first argument, w23 the command's pid. In the command's process:
// x21 the next string, x22 bytes read, then what execve said, x23 argv, x24 envp. The kernel keeps all
// registers but x0.

        .set    BUFFER, 0x410000        // BUFFER_BYTES of zeros, for the order
        .set    BUFFER_BYTES, 0x100000
        .set    FILTER_BYTES, 0x10000
        .set    STACK_BELOW, 0x20000    // of what the kernel lays out at the start: fs/exec.c
        .set    STACK_BYTES, 0x400000
        .set    RESULT, 0x510000        // setup, exec, status, -: int; then struct rusage
        .set    RESULT_BYTES, 160

        .set    HEAD_BYTES, 16          // length, then how many arguments, variables, paths: unsigned int

        .set    CONTROL, 3
        .set    RULESET, 4
        .set    FILTER, 5
        .set    GROUPS, 6               // and the numbers after it

        .text
        .globl  _start
_start: ldr     x22, [sp]               // argc: every argument after the first is for a cgroup
        ldr     x21, [sp, #8]
        mov     x19, #BUFFER
        mov     x20, #RESULT

        mov     w0, #0x30               // "0" is whoever writes it
        str     x0, [sp, #-16]!
        mov     w23, #GROUPS
0:      subs    w22, w22, #1
        b.eq    0f
        mov     x8, #64                 // write(GROUPS + n, "0", 1), close(GROUPS + n)
        mov     w0, w23
        mov     x1, sp
        mov     x2, #1
        svc     #0
        tbnz    x0, #63, failed
        mov     x8, #57
        mov     w0, w23
        svc     #0
        add     w23, w23, #1
        b       0b
0:
        mov     x8, #167                // prctl(PR_SET_DUMPABLE, 0): nobody inside looks into it
        mov     x0, #4
        mov     x1, #0
        svc     #0
        tbnz    x0, #63, failed

        ldrb    w0, [x21]               // "n…": the kernel has no Landlock
        cmp     w0, #0x6e
        b.eq    1f
        mov     x8, #446                // landlock_restrict_self(RULESET, 0)
        mov     x0, #RULESET
        mov     x1, #0
        svc     #0
        tbnz    x0, #63, failed

1:      sub     sp, sp, #FILTER_BYTES
        mov     x8, #67                 // pread64(FILTER, stack, FILTER_BYTES, 0)
        mov     x0, #FILTER
        mov     x1, sp
        mov     x2, #FILTER_BYTES
        mov     x3, #0
        svc     #0
        mov     x2, #-22                // an empty file would be no filter: EINVAL
        cmp     x0, #0
        csel    x0, x2, x0, eq
        tbnz    x0, #63, failed
        lsr     x0, x0, #3              // to a count of struct sock_filter
        stp     x0, x1, [sp, #-16]!     // struct sock_fprog
        mov     x8, #277                // seccomp(SECCOMP_SET_MODE_FILTER, 0, …)
        mov     x0, #1
        mov     x1, #0
        mov     x2, sp
        svc     #0
        tbnz    x0, #63, failed

        mov     x8, #57                 // close(RULESET), close(FILTER)
        mov     x0, #RULESET
        svc     #0
        mov     x0, #FILTER
        svc     #0

        mov     x8, #215                // munmap(): the stack
        mov     x0, sp
        sub     x0, x0, #STACK_BELOW
        and     x0, x0, #-65536         // the largest page
        mov     x1, #STACK_BYTES
        svc     #0

        mov     x8, #63                 // read(CONTROL, BUFFER, 1): the limits have been set
        mov     x0, #CONTROL
        mov     x1, x19
        mov     x2, #1
        svc     #0
        cmp     x0, #0
        b.le    quit                    // the gateway has gone, or has no use for this sandbox

        mov     x8, #220                // clone(CLONE_VM | SIGCHLD, 0, 0, 0, 0)
        mov     x0, #0x111
        mov     x1, #0
        mov     x2, #0
        mov     x3, #0
        mov     x4, #0
        svc     #0
        tbnz    x0, #63, failed
        cbz     x0, child
        mov     w23, w0

        mov     w22, #0                 // close(0), close(1), close(2): the command has its own
        mov     x8, #57
3:      mov     w0, w22
        svc     #0
        add     w22, w22, #1
        cmp     w22, #3
        b.lo    3b

4:      mov     x8, #260                // wait4(-1, &status, 0, &rusage): reaps orphans, too
        mov     x0, #-1
        add     x1, x20, #8
        mov     x2, #0
        add     x3, x20, #16
        svc     #0
        tbnz    x0, #63, failed
        cmp     w0, w23
        b.ne    4b
        b       report

failed: neg     w0, w0
        str     w0, [x20]
report: mov     x8, #64                 // write(CONTROL, RESULT, RESULT_BYTES)
        mov     x0, #CONTROL
        mov     x1, x20
        mov     x2, #RESULT_BYTES
        svc     #0
quit:   mov     x8, #94                 // exit_group(0): the kernel ends whatever else is here
        mov     x0, #0
        svc     #0
        brk     #0

child:  mov     x8, #157                // setsid()
        svc     #0
        mov     x22, #0                 // read(CONTROL, …) until the order is whole
2:      mov     x8, #63
        mov     x0, #CONTROL
        add     x1, x19, x22
        mov     x2, #BUFFER_BYTES
        sub     x2, x2, x22
        svc     #0
        cmp     x0, #0
        b.le    quit
        add     x22, x22, x0
        cmp     x22, #HEAD_BYTES
        b.lo    2b
        ldr     w0, [x19]
        cmp     x22, x0
        b.lo    2b

        add     x21, x19, #HEAD_BYTES   // the strings; pointers to them go behind the last
        add     x9, x19, x0
        add     x9, x9, #7
        and     x9, x9, #-8
        mov     x23, x9                 // argv
        ldr     w10, [x19, #4]
        mov     w11, #0
5:      cbz     w10, 6f
        sub     w10, w10, #1
        str     x21, [x9], #8
0:      ldrb    w12, [x21], #1
        cbnz    w12, 0b
        b       5b
6:      str     xzr, [x9], #8
        cbnz    w11, 7f
        mov     x24, x9                 // envp
        ldr     w10, [x19, #8]
        mov     w11, #1
        b       5b

7:      mov     x0, x21                 // a working directory that is not the one it has
        ldrb    w12, [x21], #1
        cbz     w12, 8f
        mov     x8, #49                 // chdir
        svc     #0
        tbnz    x0, #63, unable
0:      ldrb    w12, [x21], #1
        cbnz    w12, 0b
8:      mov     x1, x21                 // a terminal: the leader's first open makes it its own
        ldrb    w12, [x21], #1
        cbz     w12, 9f
        mov     x8, #56                 // openat(AT_FDCWD, terminal, O_RDWR)
        mov     x0, #-100
        mov     x2, #2
        svc     #0
        tbnz    x0, #63, unable
        mov     x8, #57                 // close
        svc     #0
0:      ldrb    w12, [x21], #1
        cbnz    w12, 0b
9:      mov     x8, #57                 // close(CONTROL)
        mov     x0, #CONTROL
        svc     #0

        ldr     w19, [x19, #12]         // how many paths there are to try
        mov     w22, #-2                // ENOENT, where none is better
1:      mov     x8, #221                // execve(path, argv, envp)
        mov     x0, x21
        mov     x1, x23
        mov     x2, x24
        svc     #0
        cmn     w0, #2                  // ENOENT, ENOTDIR: it is not there; EACCES: it is not for us
        b.eq    2f
        cmn     w0, #20
        b.eq    2f
        cmn     w0, #13
        b.ne    unable
        mov     w22, w0
2:      ldrb    w12, [x21], #1
        cbnz    w12, 2b
        subs    w19, w19, #1
        b.ne    1b
        mov     w0, w22
unable: neg     w0, w0                  // told to the parent through the memory that is shared
        str     w0, [x20, #4]
        mov     x8, #94
        mov     x0, #127
        svc     #0
        brk     #0
