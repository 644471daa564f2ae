//! Three servers as one.

use anyhow::{Context as _, Result, ensure};
use tidemill::embedded::Cluster;

use crate::{ask, connect, eventually};

#[tokio::test]
async fn a_cluster_replicates_and_outlives_a_node() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    assert_eq!(cluster.url().split(',').count(), 3);
    let client = connect(&cluster.url()).await?;
    let stream = r#"{"name":"THREE","subjects":["three"],"num_replicas":3}"#;
    ask(&client, "$JS.API.STREAM.CREATE.THREE", stream).await?;
    ask(&client, "three", "a message").await?;

    cluster.kill(0).await?;
    assert_eq!(cluster.node(0).pid(), None);
    cluster.restart(0).await?;
    cluster.ready().await?;
    let client = connect(cluster.node(0).url()).await?;
    // The stream elects its own leader.
    let info = eventually(async || ask(&client, "$JS.API.STREAM.INFO.THREE", "").await).await?;
    assert_eq!(info["state"]["messages"], 1);
    cluster.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_wiped_node_gets_everything_from_the_others() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let client = connect(&cluster.url()).await?;
    let stream = r#"{"name":"THREE","subjects":["three"],"num_replicas":3}"#;
    ask(&client, "$JS.API.STREAM.CREATE.THREE", stream).await?;
    ask(&client, "three", "a message").await?;
    drop(client);

    let node = cluster.node(0);
    node.wipe().await?;
    assert_eq!(node.pid(), None);
    assert!(!node.data_dir().join("jetstream").exists());
    node.restart().await?;
    cluster.ready().await?;
    let client = connect(node.url()).await?;
    eventually(async || {
        let info = ask(&client, "$JS.API.STREAM.INFO.THREE", "").await?;
        let copies = info["cluster"]["replicas"].as_array().context("a list")?;
        ensure!(copies.iter().all(|copy| copy["current"] == true), "{info}");
        ensure!(info["state"]["messages"] == 1, "{info}");
        Ok(())
    })
    .await?;
    cluster.stop().await?;
    Ok(())
}
