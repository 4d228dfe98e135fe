// Loaded into a worker before its own code: memory that it holds and never uses again. BALLAST_MB says how much.
globalThis.ballast = Buffer.alloc(Number(process.env.BALLAST_MB) * 2 ** 20, 1)
