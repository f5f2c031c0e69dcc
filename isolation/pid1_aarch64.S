// pid 1 of a sandbox; what it does and why is told in pid1.py. Assembled by
//     as -o pid1.o pid1_aarch64.S && objcopy -O binary -j .text pid1.o pid1.bin
// (on another machine aarch64-linux-gnu-as and -objcopy). The bytes of pid1.bin stand in pid1.py;
// tests/isolation/test_pid1.py compares them. As pid1_x86_64.S, line by line.
//
// No stack is used after the first lines: the command's process shares all memory until it executes.
// x19 BUFFER, x20 RESULT, x21 the first argument, x22 bytes read, w23 the command's pid. The kernel
// keeps all registers but x0.

        .set    BUFFER, 0x410000        // BUFFER_BYTES of zeros: the filter, then the order
        .set    BUFFER_BYTES, 0x100000
        .set    RESULT, 0x510000        // setup, exec, status, -: int; then struct rusage
        .set    RESULT_BYTES, 160

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

1:      mov     x8, #67                 // pread64(FILTER, BUFFER, 65536, 0)
        mov     x0, #FILTER
        mov     x1, x19
        mov     x2, #0x10000
        mov     x3, #0
        svc     #0
        mov     x1, #-22                // an empty file would be no filter: EINVAL
        cmp     x0, #0
        csel    x0, x1, x0, eq
        tbnz    x0, #63, failed
        lsr     x0, x0, #3              // to a count of struct sock_filter
        stp     x0, x19, [sp, #-16]!    // struct sock_fprog
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
        cmp     x22, #48                // the six words of its head
        b.lo    2b
        ldr     x0, [x19]
        cmp     x22, x0
        b.lo    2b

        ldr     x1, [x19, #40]          // a terminal: the leader's first open makes it its own
        cbz     x1, 5f
        mov     x8, #56                 // openat(AT_FDCWD, terminal, O_RDWR)
        mov     x0, #-100
        mov     x2, #2
        svc     #0
        tbnz    x0, #63, unable
        mov     x8, #57                 // close
        svc     #0
5:      ldr     x0, [x19, #32]          // a working directory that is not the one it has
        cbz     x0, 6f
        mov     x8, #49                 // chdir
        svc     #0
        tbnz    x0, #63, unable
6:      mov     x8, #57                 // close(CONTROL)
        mov     x0, #CONTROL
        svc     #0
        mov     x8, #221                // execve(path, argv, envp)
        ldp     x0, x1, [x19, #8]
        ldr     x2, [x19, #24]
        svc     #0
unable: neg     w0, w0                  // told to the parent through the memory that is shared
        str     w0, [x20, #4]
        mov     x8, #94
        mov     x0, #127
        svc     #0
        brk     #0
