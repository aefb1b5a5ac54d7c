//! One address, several queues. The kernel keeps who has connected in a queue until it is accepted, and turns the next one
//! away when that is full: a client that connects faster than anybody accepts would take the others' places there, where no
//! cap can tell them apart. So an address has several sockets, each with a queue and an accept loop of its own, and the
//! client's address says in which of them it waits.

use std::io;
use std::net::SocketAddr;

use nix::libc::{self, sock_filter, sock_fprog};
use nix::sys::socket::{setsockopt, sockopt::AttachReusePortCbpf};
use socket2::Socket;

use super::address::bind_inet;

/// Of one address.
pub const MOST: usize = 16;

/// Of all addresses that are bound at once: each has an accept loop of its own.
const MOST_IN_ALL: usize = 112;

/// For each of so many addresses.
pub fn of_each(addresses: usize) -> usize {
    (MOST_IN_ALL / addresses.max(1)).clamp(1, MOST)
}

/// Binds further sockets beside the `first`, which has its address for itself: another process at the port has shown by
/// now, and only one of the same user that asks for it (`server.tcp.reuse_port`) can still join.
///
/// # Errors
/// When one cannot be had.
pub fn widen(first: Socket, address: SocketAddr, count: usize) -> io::Result<Vec<Socket>> {
    if count > 1 {
        first.set_reuse_port(true)?;
    }
    let mut sockets = vec![first];
    while sockets.len() < count {
        sockets.push(bind_inet(address, true)?);
    }
    Ok(sockets)
}

/// From now on, whichever connects from one address, or from one /64 of IPv6, waits in the same queue.
///
/// # Errors
/// When the kernel cannot do that. It goes by ports as well then.
pub fn divide(sockets: &[Socket]) -> io::Result<()> {
    let mut program = program(sockets.len() as u32, fastrand::u32(..) | 1);
    let program = sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // The group of sockets that share an address has one program.
    sockets.first().map_or(Ok(()), |socket| {
        Ok(setsockopt(socket, AttachReusePortCbpf, &program)?)
    })
}

/// Which of `count` sockets (bpf(4): A is the accumulator, X the other register). Nobody outside knows the odd `factor`:
/// who shares a queue with whom cannot be reckoned up.
fn program(count: u32, factor: u32) -> [sock_filter; 13] {
    use libc::{
        BPF_A, BPF_ABS, BPF_ALU, BPF_B, BPF_JA, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_MISC, BPF_MOD,
        BPF_MUL, BPF_RET, BPF_RSH, BPF_TAX, BPF_W, BPF_X, BPF_XOR,
    };
    /// From the IP header on.
    const HEADER: u32 = libc::SKF_NET_OFF as u32;
    let jump = |code: u32, k, jt, jf| sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let step = |code, k| jump(code, k, 0, 0);
    [
        step(BPF_LD | BPF_B | BPF_ABS, HEADER),
        step(BPF_ALU | BPF_RSH | BPF_K, 4),
        jump(BPF_JMP | BPF_JEQ | BPF_K, 6, 0, 5),
        // Of version 6: the first 64 bits of the source.
        step(BPF_LD | BPF_W | BPF_ABS, HEADER + 8),
        step(BPF_MISC | BPF_TAX, 0),
        step(BPF_LD | BPF_W | BPF_ABS, HEADER + 12),
        step(BPF_ALU | BPF_XOR | BPF_X, 0),
        step(BPF_JMP | BPF_JA, 1),
        // Of version 4: the source.
        step(BPF_LD | BPF_W | BPF_ABS, HEADER + 12),
        step(BPF_ALU | BPF_MUL | BPF_K, factor),
        // The upper bits depend on all of them.
        step(BPF_ALU | BPF_RSH | BPF_K, 16),
        step(BPF_ALU | BPF_MOD | BPF_K, count),
        step(BPF_RET | BPF_A, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::net::{IpAddr, TcpStream};
    use std::time::{Duration, Instant};

    #[test]
    fn whoever_comes_from_one_address_waits_in_one_queue() {
        let mut queues = HashSet::new();
        for host in 1..=32 {
            let sockets = listening("127.0.0.1:0");
            let server = sockets[0].local_addr().unwrap().as_socket().unwrap();
            let clients: Vec<_> = (0..8).map(|_| connect([127, 0, 0, host], server)).collect();
            let taken = accept(&sockets, clients.len());
            let places: HashSet<usize> = taken.iter().map(|(place, _)| *place).collect();
            assert_eq!(places.len(), 1, "{taken:?}");
            queues.extend(places);
        }
        assert!(queues.len() > 4, "many are used: {queues:?}");
    }

    #[test]
    fn an_address_of_ipv6_is_told_apart_as_well() {
        let sockets = listening("[::1]:0");
        let server = sockets[0].local_addr().unwrap().as_socket().unwrap();
        let _clients: Vec<_> = (0..8)
            .map(|_| TcpStream::connect(server).unwrap())
            .collect();
        let taken = accept(&sockets, 8);
        assert!(
            taken.iter().all(|(place, _)| *place == taken[0].0),
            "{taken:?}"
        );
    }

    #[test]
    fn nobody_else_has_the_port() {
        let sockets = listening("127.0.0.1:0");
        let server = sockets[0].local_addr().unwrap().as_socket().unwrap();
        let refused = bind_inet(server, false).map(|_| ()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn all_of_them_can_be_handed_over_at_once() {
        for addresses in 0..=MOST_IN_ALL {
            let queues = of_each(addresses);
            assert!((1..=MOST).contains(&queues) && queues * addresses <= MOST_IN_ALL);
        }
        assert_eq!(of_each(1), MOST);
    }

    fn listening(address: &str) -> Vec<Socket> {
        let first = bind_inet(address.parse().unwrap(), false).unwrap();
        let address = first.local_addr().unwrap().as_socket().unwrap();
        let sockets = widen(first, address, MOST).unwrap();
        assert!(sockets.iter().all(|socket| socket.listen(64).is_ok()));
        divide(&sockets).unwrap();
        sockets
    }

    fn connect(from: [u8; 4], to: SocketAddr) -> Socket {
        let socket = bind_inet((from, 0).into(), false).unwrap();
        socket.set_nonblocking(false).unwrap();
        socket.connect(&to.into()).unwrap();
        socket
    }

    /// The queue that each came to, and who it is.
    fn accept(sockets: &[Socket], count: usize) -> Vec<(usize, Option<IpAddr>)> {
        let (mut taken, start) = (Vec::new(), Instant::now());
        while taken.len() < count && start.elapsed() < Duration::from_secs(5) {
            for (place, socket) in sockets.iter().enumerate() {
                if let Ok((_, peer)) = socket.accept() {
                    taken.push((place, peer.as_socket().map(|peer| peer.ip())));
                }
            }
        }
        assert_eq!(taken.len(), count);
        taken
    }
}
