/**
 * Cleans up when the torture itself dies in whatever way: a shell in a session of its own that waits until the pipe from
 * us breaks. It is told what to clean through that pipe, so that nothing of it looks like what it is to end.
 */

import { spawn } from 'node:child_process'

/** The pattern goes to grep through a pipe: on its command line it would find itself. */
const SCRIPT = `
read -r base; read -r disk; read -r results
cat >/dev/null
for look in 1 2 3 4 5; do
  for file in $(echo "$base/" | grep -lsF -f - /proc/[0-9]*/environ /proc/[0-9]*/cmdline); do
    process=\${file#/proc/}
    kill -9 "\${process%/*}"
  done
  sleep 0.3
done
if [ -n "$disk" ]; then umount -l "$disk"; fi
rm -rf -- "$base"
if [ -n "$results" ]; then rm -rf -- "$results"; fi
`

/**
 * @param results a directory outside of `base` that is to be removed too
 * @returns a function that sends it away: all was cleaned up in good order
 */
export function startWatchdog(
  path: string,
  base: string,
  disk: string | undefined,
  results: string | undefined,
): () => void {
  const dog = spawn('sh', ['-c', SCRIPT], { env: { PATH: path }, stdio: ['pipe', 'ignore', 'ignore'], detached: true })
  dog.on('error', () => undefined)
  dog.stdin.on('error', () => undefined)
  dog.stdin.write(`${base}\n${disk ?? ''}\n${results ?? ''}\n`)
  dog.unref()
  return () => void dog.kill('SIGKILL')
}
