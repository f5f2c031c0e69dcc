# pid 1 of a sandbox; what it does and why is told in pid1.py. Assembled by
#     as -o pid1.o pid1_x86_64.S && objcopy -O binary -j .text pid1.o pid1.bin
# The bytes of pid1.bin stand in pid1.py; tests/isolation/test_pid1.py compares them.
#
# No stack is used after the filter, which is read onto it, and then there is none: the command's process
# shares all memory until it executes.
# %rbx BUFFER, %rbp RESULT, %r12 the first argument, %r14 the command's pid. In the command's process:
# %r12 the next string, %r13 bytes read, then what execve said, %r14 argv, %r15 envp.

        .set    BUFFER, 0x410000        # BUFFER_BYTES of zeros, for the order
        .set    BUFFER_BYTES, 0x100000
        .set    FILTER_BYTES, 0x10000
        .set    STACK_BELOW, 0x20000    # of what the kernel lays out at the start: fs/exec.c
        .set    STACK_BYTES, 0x400000   # vdso_addr() keeps to two mebibytes
        .set    RESULT, 0x510000        # setup, exec, status, -: int; then struct rusage
        .set    RESULT_BYTES, 160

        .set    HEAD_BYTES, 16          # length, then how many arguments, variables, paths: unsigned int

        .set    CONTROL, 3
        .set    RULESET, 4
        .set    FILTER, 5
        .set    GROUPS, 6               # and the numbers after it

        .text
        .globl  _start
_start: mov     (%rsp), %r13            # argc: every argument after the first is for a cgroup
        mov     8(%rsp), %r12
        mov     $BUFFER, %ebx
        mov     $RESULT, %ebp

        push    $0x30                   # "0" is whoever writes it
        mov     $GROUPS, %r14d
0:      dec     %r13d
        jz      0f
        mov     $1, %eax                # write(GROUPS + n, "0", 1), close(GROUPS + n)
        mov     %r14d, %edi
        mov     %rsp, %rsi
        mov     $1, %edx
        syscall
        test    %eax, %eax
        js      failed
        mov     $3, %eax
        mov     %r14d, %edi
        syscall
        inc     %r14d
        jmp     0b
0:
        mov     $157, %eax              # prctl(PR_SET_DUMPABLE, 0): nobody inside looks into it
        mov     $4, %edi
        xor     %esi, %esi
        syscall
        test    %eax, %eax
        js      failed

        cmpb    $0x6e, (%r12)           # "n…": the kernel has no Landlock
        je      1f
        mov     $446, %eax              # landlock_restrict_self(RULESET, 0)
        mov     $RULESET, %edi
        xor     %esi, %esi
        syscall
        test    %eax, %eax
        js      failed

1:      sub     $FILTER_BYTES, %rsp
        mov     $17, %eax               # pread64(FILTER, stack, FILTER_BYTES, 0)
        mov     $FILTER, %edi
        mov     %rsp, %rsi
        mov     $FILTER_BYTES, %edx
        xor     %r10d, %r10d
        syscall
        mov     $-22, %ecx              # an empty file would be no filter: EINVAL
        test    %eax, %eax
        cmovz   %ecx, %eax
        test    %eax, %eax
        js      failed
        shr     $3, %eax                # to a count of struct sock_filter
        push    %rsi                    # struct sock_fprog
        push    %rax
        mov     $317, %eax              # seccomp(SECCOMP_SET_MODE_FILTER, 0, …)
        mov     $1, %edi
        xor     %esi, %esi
        mov     %rsp, %rdx
        syscall
        test    %eax, %eax
        js      failed

        mov     $3, %eax                # close(RULESET), close(FILTER)
        mov     $RULESET, %edi
        syscall
        mov     $3, %eax
        mov     $FILTER, %edi
        syscall

        mov     $11, %eax               # munmap(): the stack, and a vDSO that lies above it
        lea     -STACK_BELOW(%rsp), %rdi
        and     $-4096, %rdi
        mov     $STACK_BYTES, %esi
        syscall

        xor     %eax, %eax              # read(CONTROL, BUFFER, 1): the limits have been set
        mov     $CONTROL, %edi
        mov     %rbx, %rsi
        mov     $1, %edx
        syscall
        test    %rax, %rax
        jle     quit                    # the gateway has gone, or has no use for this sandbox

        mov     $56, %eax               # clone(CLONE_VM | SIGCHLD, 0, 0, 0, 0)
        mov     $0x111, %edi
        xor     %esi, %esi
        xor     %edx, %edx
        xor     %r10d, %r10d
        xor     %r8d, %r8d
        syscall
        test    %eax, %eax
        js      failed
        jz      child
        mov     %eax, %r14d

        xor     %r12d, %r12d            # close(0), close(1), close(2): the command has its own
3:      mov     $3, %eax
        mov     %r12d, %edi
        syscall
        inc     %r12d
        cmp     $3, %r12d
        jb      3b

4:      mov     $61, %eax               # wait4(-1, &status, 0, &rusage): reaps orphans, too
        mov     $-1, %rdi
        lea     8(%rbp), %rsi
        xor     %edx, %edx
        lea     16(%rbp), %r10
        syscall
        test    %eax, %eax
        js      failed
        cmp     %r14d, %eax
        jne     4b
        jmp     report

failed: neg     %eax
        mov     %eax, (%rbp)
report: mov     $1, %eax                # write(CONTROL, RESULT, RESULT_BYTES)
        mov     $CONTROL, %edi
        mov     %rbp, %rsi
        mov     $RESULT_BYTES, %edx
        syscall
quit:   mov     $231, %eax              # exit_group(0): the kernel ends whatever else is here
        xor     %edi, %edi
        syscall
        hlt

child:  mov     $112, %eax              # setsid()
        syscall
        xor     %r13d, %r13d            # read(CONTROL, …) until the order is whole
2:      xor     %eax, %eax
        mov     $CONTROL, %edi
        lea     (%rbx, %r13), %rsi
        mov     $BUFFER_BYTES, %edx
        sub     %r13, %rdx
        syscall
        test    %rax, %rax
        jle     quit
        add     %rax, %r13
        cmp     $HEAD_BYTES, %r13
        jb      2b
        mov     (%rbx), %eax
        cmp     %rax, %r13
        jb      2b

        lea     HEAD_BYTES(%rbx), %r12  # the strings; pointers to them go behind the last
        lea     7(%rbx, %rax), %rdi
        and     $-8, %rdi
        mov     %rdi, %r14              # argv
        mov     4(%rbx), %ecx
        xor     %edx, %edx
5:      dec     %ecx
        js      6f
        mov     %r12, (%rdi)
        add     $8, %rdi
0:      cmpb    $0, (%r12)
        lea     1(%r12), %r12
        jne     0b
        jmp     5b
6:      movq    $0, (%rdi)
        add     $8, %rdi
        test    %edx, %edx
        jnz     7f
        mov     %rdi, %r15              # envp
        mov     8(%rbx), %ecx
        inc     %edx
        jmp     5b

7:      cmpb    $0, (%r12)              # a working directory that is not the one it has
        je      8f
        mov     $80, %eax               # chdir
        mov     %r12, %rdi
        syscall
        test    %eax, %eax
        js      unable
0:      inc     %r12
        cmpb    $0, (%r12)
        jne     0b
8:      inc     %r12
        cmpb    $0, (%r12)              # a terminal: the leader's first open makes it its own
        je      9f
        mov     $257, %eax              # openat(AT_FDCWD, terminal, O_RDWR)
        mov     $-100, %rdi
        mov     %r12, %rsi
        mov     $2, %edx
        syscall
        test    %eax, %eax
        js      unable
        mov     %eax, %edi
        mov     $3, %eax                # close
        syscall
0:      inc     %r12
        cmpb    $0, (%r12)
        jne     0b
9:      inc     %r12
        mov     $3, %eax                # close(CONTROL)
        mov     $CONTROL, %edi
        syscall

        mov     12(%rbx), %ebx          # how many paths there are to try
        mov     $-2, %r13d              # ENOENT, where none is better
1:      mov     $59, %eax               # execve(path, argv, envp)
        mov     %r12, %rdi
        mov     %r14, %rsi
        mov     %r15, %rdx
        syscall
        cmp     $-2, %eax               # ENOENT, ENOTDIR: it is not there; EACCES: it is not for us
        je      2f
        cmp     $-20, %eax
        je      2f
        cmp     $-13, %eax
        jne     unable
        mov     %eax, %r13d
2:      inc     %r12
        cmpb    $0, -1(%r12)
        jne     2b
        dec     %ebx
        jnz     1b
        mov     %r13d, %eax
unable: neg     %eax                    # told to the parent through the memory that is shared
        mov     %eax, 4(%rbp)
        mov     $231, %eax
        mov     $127, %edi
        syscall
        hlt
