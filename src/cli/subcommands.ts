/** What is done around a worker, and around a sailor; each is loaded when it is called. */

import type { Subcommands } from './command.ts'

/** Of `qworker`. */
export const SUBCOMMANDS: Subcommands = {
  init: {
    operands: 'DIR',
    summary: 'write a small project that works, to start from',
    load: () => import('./init.ts'),
  },
  check: {
    operands: '',
    summary: 'tell what is right and what is wrong with an installation',
    load: () => import('./check.ts'),
  },
  broker: {
    operands: '',
    summary: 'run the embedded broker alone, for several workers of this machine',
    load: () => import('./broker-program.ts'),
  },
  completion: {
    operands: 'bash|zsh|fish',
    summary: 'print what the shell needs to complete these command lines',
    load: () => import('./completion.ts'),
  },
}

/** Of `drunken-sailor`. */
export const SAILOR_SUBCOMMANDS: Subcommands = {
  torture: {
    operands: '',
    summary: 'break a whole deployment, and count what is lost',
    load: () => import('./torture.ts'),
  },
}
